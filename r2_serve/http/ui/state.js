// Models with their replicas, rests and failures, as the router's metrics say; keys with their budgets.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { getJson, metrics, usd } from "./api.js";

const EVERY_MS = 10000;

const readKeys = async (signal) => (await getJson("r2/keys", signal)).data;

// Reads something now and then while the page is seen. {value} or {refused} or {error}.
function useRead(read) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    const readAgain = async () => {
      if (document.hidden) return;
      try {
        setFound({ value: await read(stop.signal) });
      } catch (failure) {
        if (stop.signal.aborted) return;
        setFound((known) => ({ ...known, refused: failure.status === 403, error: failure.message }));
        if (failure.status) clearInterval(timer);
      }
    };
    const timer = setInterval(readAgain, EVERY_MS);
    readAgain();
    document.addEventListener("visibilitychange", readAgain);
    return () => {
      stop.abort();
      clearInterval(timer);
      document.removeEventListener("visibilitychange", readAgain);
    };
  }, []);
  return found;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// The figures of all router replicas: {sum, most, names} of the samples with these labels.
function figures(samples) {
  const of = (name, labels = {}) => samples.filter((sample) =>
    sample.name === name && Object.entries(labels).every(([label, value]) => sample.labels[label] === value));
  return {
    sum: (name, labels) => sum(of(name, labels).map((sample) => sample.value)),
    most: (name, labels) => Math.max(...of(name, labels).map((sample) => sample.value)),
    has: (name, labels) => of(name, labels).length > 0,
    names: (name, label) => [...new Set(of(name).map((sample) => sample.labels[label]))],
    of,
  };
}

function modelState(figure, model) {
  const rests = figure.of("r2_model_resting", { model }), resting = sum(rests.map((sample) => sample.value));
  if (figure.most("r2_model_unavailable", { model }) > 0) return ["bad", "no replica takes calls"];
  if (!resting) return ["", "takes calls"];
  const left = Math.ceil(figure.most("r2_model_rest_left_seconds", { model }));
  const where = rests.length > 1 ? ` in ${resting} of ${rests.length} routers` : "";
  return ["bad", left > 0 ? `rests after failures${where}, ${left} s more` : `rests after failures${where}, the next call tries it`];
}

function ModelRow({ figure, model, hasReplicas }) {
  const [tone, state] = modelState(figure, model);
  const replicas = figure.has("r2_model_replicas", { model }) ? figure.most("r2_model_replicas", { model }) : "";
  const calls = figure.sum("r2_calls_total", { model }), failed = figure.sum("r2_calls_total", { model, outcome: "failed" });
  return html`<tr><th scope="row">${model}</th><td class=${tone}>${state}</td>${hasReplicas && html`<td class="number">${replicas}</td>`}
    <td class="number">${calls}</td><td class="number ${failed ? "bad" : ""}">${failed || ""}</td>
    <td class="number">${usd(figure.sum("r2_cost_usd_total", { model }))}</td></tr>`;
}

const shareOf = (key) => Math.min(100, (100 * key.spent_usd) / key.budget_usd);
const limitOf = (key) => `${usd(key.budget_usd)}${key.budget_period === "total" ? "" : ` per ${key.budget_period}`}`;
const dayOf = (date) => new Date(date).toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

function Share({ of }) {
  const share = shareOf(of), text = `${Math.round(share)} % of the budget of ${of.name} is spent`;
  return html`<div class="bar" role="img" title=${text} aria-label=${text}><div class=${share >= 100 ? "over" : ""} style=${{ width: `${share}%` }} /></div>`;
}

function Keys({ keys }) {
  const row = (key) => html`<tr key=${key.name}><th scope="row">${key.name}</th><td class="number">${usd(key.spent_usd)}</td>
    <td class="number">${key.budget_usd ? limitOf(key) : "no limit"}</td>
    <td>${key.resets_at ? dayOf(key.resets_at) : key.budget_usd ? "never" : ""}</td><td class="time wide">${key.budget_usd && html`<${Share} of=${key} />`}</td></tr>`;
  return html`<div class="table" tabindex="0" role="group" aria-label="Keys"><table><caption class="quiet">Keys in their budget period</caption>
      <thead><tr><th scope="col">key</th><th scope="col" class="number">spent</th><th scope="col" class="number">budget</th><th scope="col">full again</th>
        <th scope="col" class="wide">share</th></tr></thead>
      <tbody>${keys.map(row)}</tbody></table></div>`;
}

// What the key of this page may still spend, read again after each question.
export function OwnBudget({ isBusy }) {
  const [keys, setKeys] = useState([]);
  useEffect(() => {
    if (!isBusy) readKeys().then(setKeys, () => {});
  }, [isBusy]);
  if (keys.length !== 1 || !keys[0].budget_usd) return null;
  const [key] = keys, again = key.resets_at ? `; full again on ${dayOf(key.resets_at)}` : "";
  return html`<div class="meter"><${Share} of=${key} />
    <span class="quiet">Key ${key.name} has spent ${usd(key.spent_usd)} of ${limitOf(key)}${again}.</span></div>`;
}

export function State() {
  const found = useRead(metrics), keys = useRead(readKeys)?.value || [];
  if (!found) return html`<p class="quiet" role="status">Reading the state of models</p>`;
  const shownKeys = keys.length > 0 && html`<${Keys} keys=${keys} />`;
  if (found.refused) return html`<p class="quiet">Models and replicas are shown to keys without limits.</p>${shownKeys}`;
  if (!found.value) return html`<p class="bad" role="alert">The state of models cannot be read: ${found.error}</p>${shownKeys}`;
  const figure = figures(found.value), calls = (model) => figure.sum("r2_calls_total", { model });
  const models = figure.names("r2_model_resting", "model").sort((a, b) => calls(b) - calls(a));
  const away = models.filter((model) => modelState(figure, model)[0]), hasReplicas = figure.of("r2_model_replicas").length > 0;
  const routers = figure.names("r2_requests_running", "replica").length, silent = figure.sum("r2_router_replicas_silent");
  const saved = figure.sum("r2_key_saved_usd");
  return html`<div>
    <p class="quiet">${routers} router${routers === 1 ? "" : "s"}: ${figure.sum("r2_requests_running")} requests at work, ${figure.sum("r2_requests_queued")} waiting${silent ? `, ${silent} routers do not answer` : ""}.
      ${saved ? ` Since the routers started, answers ${saved < 0 ? "cost more than" : "saved, against"} their baseline: ${usd(Math.abs(saved))}.` : ""}
      ${found.error ? html` <span class="bad">Not up to date: ${found.error}</span>` : ""}</p>
    <details open=${away.length > 0}><summary class=${away.length ? "bad" : ""}>${away.length ? `${away.length} of ${models.length} models rest or take no calls` : `All ${models.length} models take calls`}${keys.length ? `; ${keys.length} keys` : ""}</summary>
    ${models.length > 0 && html`<div class="table" tabindex="0" role="group" aria-label="Models"><table><caption class="quiet">Models since the routers started</caption>
      <thead><tr><th scope="col">model</th><th scope="col">state</th>${[...(hasReplicas ? ["replicas"] : []), "calls", "failed", "spent"].map((name) => html`<th scope="col" class="number">${name}</th>`)}</tr></thead>
      <tbody>${models.map((model) => html`<${ModelRow} key=${model} figure=${figure} model=${model} hasReplicas=${hasReplicas} />`)}</tbody></table></div>`}
    ${shownKeys}
    </details></div>`;
}

// What the router's metrics say: models with their replicas, rests and failures, and keys with their budgets.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { metrics, usd } from "./api.js";

const EVERY_MS = 10000;

// Reads the metrics now and then while the page is seen. {samples} or {refused} or {error}.
function useMetrics() {
  const [found, setFound] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    const read = async () => {
      if (document.hidden) return;
      try {
        setFound({ samples: await metrics(stop.signal) });
      } catch (failure) {
        if (stop.signal.aborted) return;
        setFound((known) => ({ ...known, refused: failure.status === 403, error: failure.message }));
        if (failure.status) clearInterval(timer);
      }
    };
    const timer = setInterval(read, EVERY_MS);
    read();
    document.addEventListener("visibilitychange", read);
    return () => {
      stop.abort();
      clearInterval(timer);
      document.removeEventListener("visibilitychange", read);
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

const spentOf = (figure, key) => (figure.has("r2_key_spent_usd", { key }) ? figure.most("r2_key_spent_usd", { key }) : 0);

function KeyRow({ figure, name }) {
  const spent = spentOf(figure, name), budget = figure.of("r2_key_budget_usd", { key: name })[0];
  const share = budget && Math.min(100, (100 * spent) / budget.value);
  const text = budget && `${Math.round(share)} % of the budget is spent`;
  return html`<tr><th scope="row">${name}</th><td class="number">${usd(spent)}</td>
    <td class="number">${budget ? `${usd(budget.value)}${budget.labels.period === "total" ? "" : ` per ${budget.labels.period}`}` : "no limit"}</td>
    <td class="time">${budget && html`<div class="bar" role="img" title=${text} aria-label=${text}><div class=${share >= 100 ? "over" : ""} style=${{ width: `${share}%` }} /></div>`}</td></tr>`;
}

export function State() {
  const found = useMetrics();
  if (!found) return html`<p class="quiet" role="status">Reading the state of models</p>`;
  if (found.refused) return html`<p class="quiet">Models, replicas and budgets are shown to keys without limits.</p>`;
  if (!found.samples) return html`<p class="bad" role="alert">The state of models cannot be read: ${found.error}</p>`;
  const figure = figures(found.samples), calls = (model) => figure.sum("r2_calls_total", { model });
  const models = figure.names("r2_model_resting", "model").sort((a, b) => calls(b) - calls(a));
  const away = models.filter((model) => modelState(figure, model)[0]), hasReplicas = figure.of("r2_model_replicas").length > 0;
  const keys = [...new Set([...figure.names("r2_key_budget_usd", "key"), ...figure.names("r2_key_spent_usd", "key")])].sort();
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
    ${keys.length > 0 && html`<div class="table" tabindex="0" role="group" aria-label="Keys"><table><caption class="quiet">Keys in their budget period</caption>
      <thead><tr><th scope="col">key</th><th scope="col" class="number">spent</th><th scope="col" class="number">budget</th><th scope="col">share</th></tr></thead>
      <tbody>${keys.map((name) => html`<${KeyRow} key=${name} figure=${figure} name=${name} />`)}</tbody></table></div>`}
    </details></div>`;
}

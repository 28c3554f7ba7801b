// One query: its state, answer, costs, plan, steps and calls; and the file that shows it without a server.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { seconds, usd } from "./api.js";
import { PlanGraph, Waterfall } from "./graph.js";
import { replayed } from "./query.js";

const STATES = { waits: "waiting", works: "at work", done: "answered", failed: "failed", stopped: "stopped" };

function stateOf(query) {
  return query.state === "works" && !query.steps.length ? "the router plans" : STATES[query.state];
}

function Meter({ query }) {
  const direct = Number(query.direct || 0);
  if (!direct || !query.calls.length) return null;
  const share = (100 * query.cost) / direct;
  const part = share > 200 ? `${(share / 100).toPrecision(2)} times` : `${Math.round(share)} % of`;
  const text = `${part} what the default model alone is expected to cost: ${usd(query.cost)} of ${usd(direct)}`;
  const saved = Number(query.saved || 0);
  const against = query.state === "done" && saved ? `. Against the baseline it ${saved < 0 ? "cost more by" : "saved"} ${usd(Math.abs(saved))}.` : ".";
  return html`<div class="meter"><div class="bar" role="img" aria-label=${text}>
    <div style=${{ width: `${share > 100 ? 10000 / share : share}%` }} />${share > 100 && html`<div class="over" />`}</div>
    <span class="quiet">${text}${against}</span></div>`;
}

const asks = (step) => step.asked.map((ask) => html`<div key=${ask.model}>${ask.model}: ${ask.outcome}${ask.reason ? `, ${ask.reason}` : ""}</div>`);

function Steps({ steps }) {
  if (!steps.length) return null;
  const row = (step) => html`<tr key=${step.id}><td>#${step.id}</td><td class="text">${step.text}</td><td>${step.model}${asks(step)}</td>
    <td class="text">${step.answer}</td><td class="number">${step.tokens || ""}</td>
    <td class="number">${step.endedAt === undefined ? "" : seconds(step.endedAt - step.startedAt)}</td><td class="number">${usd(step.cost)}</td></tr>`;
  return html`<details><summary>Steps in full</summary><div class="table" tabindex="0" role="group" aria-label="Steps in full"><table>
    <thead><tr>${["step", "text", "model", "answer"].map((name) => html`<th scope="col">${name}</th>`)}
      ${["tokens", "time", "cost"].map((name) => html`<th scope="col" class="number">${name}</th>`)}</tr></thead>
    <tbody>${steps.map(row)}</tbody></table></div></details>`;
}

// Why a query went whole to one model, by the reason of the router's decision.
const WHY = {
  asked: "the request asks for it", configured: "the configuration asks for it", beyond_text: "it has tools or media",
  short: "it is short", too_long: "it is too long for a plan", no_gain: "a plan is not expected to gain", nothing_to_save: "a plan would save nothing",
  planning_too_dear: "a plan costs too much", no_valid_plan: "there was no valid plan", plan_too_dear: "its plan would have cost more",
  no_format: "a plan cannot keep to the format", ran_away: "a step did not come to an end", no_budget: "the budget does not pay for the plan",
};

function Facts({ query }) {
  const state = query.state === "works" ? "busy" : { done: "good", failed: "bad" }[query.state] || "";
  const whole = query.action === "whole" && `sent whole to one model, as ${WHY[query.reason] || query.reason}`;
  const cost = query.calls.length > 0 && `${usd(query.cost)}${query.routerCost ? `, of which the router ${usd(query.routerCost)}` : ""}`;
  const facts = [query.at > 0 && seconds(query.at), cost, query.steps.length > 0 && `${query.steps.length} step${query.steps.length > 1 ? "s" : ""}`, whole];
  return html`<p class="facts quiet" role="status"><strong class=${state}>${stateOf(query)}</strong>${facts.filter(Boolean).map((fact) => html` <span>${fact}</span>`)}</p>`;
}

export function QueryView({ query, label = "The query" }) {
  const answer = query.streamed || query.answer;
  return html`<section aria-label=${label}>
    <${Facts} query=${query} />
    ${query.isPrivate && html`<p class="quiet">This key may see how the query ran, and not its texts.</p>`}
    ${query.error && query.state !== "stopped" && html`<p class="bad" role="alert">${query.error}</p>`}
    <div aria-live="polite">${answer && html`<p class="answer">${answer}</p>`}</div>
    <${Meter} query=${query} />
    <${PlanGraph} steps=${query.steps} />
    <${Steps} steps=${query.steps} />
    <${Waterfall} query=${query} />
  </section>`;
}

const escaped = (text) => document.createElement("i").appendChild(new Text(text)).parentNode.innerHTML;

async function save(title, shown) {
  const style = await (await fetch("style.css")).text();
  const page = `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">` +
    `<title>R2: a query</title><style>${style}</style><body><main id="app"><h1>${escaped(title)}</h1>${shown}</main></body></html>`;
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(new Blob([page], { type: "text/html" })), download: "r2-query.html",
  });
  link.click();
  URL.revokeObjectURL(link.href);
}

const LONGEST_REPLAY_S = 6;

// Walks through the events of a query again: {at} is the number of those that are shown, null if all are.
function useReplay({ events }) {
  const [at, setAt] = useState(null), [isPlaying, setPlaying] = useState(false);
  useEffect(() => {
    if (!isPlaying) return undefined;
    if (at >= events.length) return setPlaying(false);
    const factor = Math.min(1, LONGEST_REPLAY_S / events.at(-1).at_s), passed = events[at].at_s - (events[at - 1]?.at_s || 0);
    const timer = setTimeout(() => setAt((now) => (now === at ? at + 1 : now)), Math.max(60, 1000 * factor * passed));
    return () => clearTimeout(timer);
  }, [isPlaying, at]);
  const go = (number, plays) => { setAt(number); setPlaying(plays); };
  return { at, isPlaying, go };
}

function Replay({ query, replay: { at, isPlaying, go } }) {
  const most = query.events.length;
  if (at === null) return html`<button type="button" onClick=${() => go(1, true)}>Replay</button>`;
  return html`<button type="button" onClick=${() => go(isPlaying || at < most ? at : 1, !isPlaying)}>${isPlaying ? "Pause" : "Play"}</button>
    <label>moment of the replay<input type="range" min="1" max=${most} value=${at} onInput=${(e) => go(Number(e.target.value), false)} /></label>
    <button type="button" onClick=${() => go(null, false)}>End the replay</button>`;
}

// A query that can be replayed and saved as one HTML file once it has ended; `children` are more buttons.
export function SavedView({ query, title, isBusy, children }) {
  const view = useRef(null), replay = useReplay(query);
  const shown = replay.at === null || isBusy ? query : replayed(query.events.slice(0, replay.at));
  return html`<div class="row tools">${!isBusy && query.events.length > 1 && html`<${Replay} query=${query} replay=${replay} />`}
      ${!isBusy && query.events.length > 0 && html`<button type="button" onClick=${() => save(title, view.current.innerHTML)}>Save as HTML</button>`}${children}</div>
    <div ref=${view}><${QueryView} query=${shown} /></div>`;
}

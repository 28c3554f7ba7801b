// One query: its state, answer, costs, plan, steps and calls; and the file that shows it without a server.

import { html, useRef } from "./vendor/preact-htm.js";
import { seconds, usd } from "./api.js";
import { PlanGraph, Waterfall } from "./graph.js";

const STATES = { waits: "waiting", works: "at work", done: "answered", failed: "failed", stopped: "stopped" };

function stateOf(query) {
  return query.state === "works" && !query.steps.length ? "the router plans" : STATES[query.state];
}

function Meter({ query }) {
  const direct = Number(query.direct || 0);
  if (!direct) return null;
  const share = (100 * query.cost) / direct;
  const text = `${usd(query.cost)} of ${usd(direct)} that asking the default model directly is expected to cost (${Math.round(share)} %)`;
  const saved = Number(query.saved || 0);
  const against = query.state === "done" && saved ? `. Against the baseline it ${saved < 0 ? "cost more by" : "saved"} ${usd(Math.abs(saved))}` : "";
  return html`<div class="meter"><div class="bar" role="img" aria-label=${text}>
    <div class=${share > 100 ? "over" : ""} style=${{ width: `${Math.min(share, 100)}%` }} /></div>
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

export function QueryView({ query, label = "The query" }) {
  return html`<section aria-label=${label}>
    <p class="quiet" role="status">${stateOf(query)}${query.at ? `, ${seconds(query.at)}` : ""}, ${usd(query.cost)}, of which the router ${usd(query.routerCost)}
      ${query.action === "whole" ? `; sent whole to one model (${query.reason})` : ""}</p>
    ${query.isPrivate && html`<p class="quiet">This key may see how the query ran, and not its texts.</p>`}
    ${query.error && html`<p class="bad" role="alert">${query.error}</p>`}
    <p class="answer" aria-live="polite">${query.streamed || query.answer}</p>
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

// A query with a button that saves it as one HTML file; `children` are more buttons.
export function SavedView({ query, title, isBusy, children }) {
  const view = useRef(null);
  return html`<div class="row">${children}
      ${!isBusy && html`<button type="button" onClick=${() => save(title, view.current.innerHTML)}>Save as HTML</button>`}</div>
    <div ref=${view}><${QueryView} query=${query} /></div>`;
}

// Ask: a question, its plan as it is made, the answer as it comes, and what it cost beside the direct call.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, events, seconds, usd } from "./api.js";
import { PlanGraph, Waterfall } from "./graph.js";
import { fresh, taken } from "./query.js";

// Asks and tells each new state to `show`; the last state holds the whole answer.
async function asked({ question, model, policy, limit }, show, signal, record) {
  const r2 = { events: true, ...(policy && { policy }), ...(limit && { max_cost_usd: limit }) };
  const body = { model, stream: true, r2, messages: [{ role: "user", content: question }] };
  let query = { ...fresh(""), state: "works", text: question, model };
  show(query);
  for await (const { data } of events("chat/completions", { body, signal })) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(null, chunk.error.message);
    if (chunk.r2?.event) {
      record.push(chunk.r2.event);
      query = taken(query, chunk.r2.event);
    } else {
      const text = chunk.choices[0]?.delta?.content || "";
      query = { ...query, streamed: (query.streamed || "") + text, saved: chunk.r2?.savings ?? query.saved };
      if (chunk.r2) query.models = chunk.r2.models;
    }
    show(query);
  }
}

function Meter({ query }) {
  const direct = Number(query.direct || 0);
  if (!direct) return null;
  const share = (100 * query.cost) / direct;
  const text = `${usd(query.cost)} of ${usd(direct)} that asking the default model directly is expected to cost (${Math.round(share)} %)`;
  return html`<div class="meter"><div class="bar" role="img" aria-label=${text}>
    <div class=${share > 100 ? "over" : ""} style=${{ width: `${Math.min(share, 100)}%` }} /></div>
    <span class="quiet">${text}</span></div>`;
}

export function QueryView({ query }) {
  const isWhole = query.action === "whole" || !query.steps.length;
  const state = {
    waits: "waiting", works: isWhole && !query.steps.length ? "the router plans" : "at work", done: "answered", failed: "failed",
  }[query.state];
  return html`<section aria-label="The query">
    <p class="quiet" role="status">${state}${query.at ? `, ${seconds(query.at)}` : ""}, ${usd(query.cost)}, of which the router ${usd(query.routerCost)}
      ${query.action === "whole" ? `; sent whole to one model (${query.reason})` : ""}</p>
    ${query.error && html`<p class="bad" role="alert">${query.error}</p>`}
    <p class="answer" aria-live="polite">${query.streamed || query.answer}</p>
    <${Meter} query=${query} />
    <${PlanGraph} steps=${query.steps} />
    <${Waterfall} query=${query} />
  </section>`;
}

export function Models({ models, value, onChange, name = "model" }) {
  return html`<label>${name}<select onChange=${(e) => onChange(e.target.value)}>
    ${models.map((model) => html`<option key=${model.id} selected=${model.id === value}>${model.id}</option>`)}</select></label>`;
}

export function Ask({ models }) {
  const [form, setForm] = useState({ question: "", model: models[0]?.id || "", policy: "", limit: "" });
  const [query, setQuery] = useState(null);
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const running = useRef(null), recorded = useRef([]), view = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  const set = (name) => (e) => setForm({ ...form, [name]: e.target?.value ?? e });

  async function submit(e) {
    e.preventDefault();
    running.current = new AbortController();
    recorded.current = [];
    setError(null);
    setBusy(true);
    try {
      await asked(form, setQuery, running.current.signal, recorded.current);
    } catch (failure) {
      if (failure.name !== "AbortError") {
        setError(failure instanceof Refused ? failure.message : `The connection is lost: ${failure.message}. Ask again.`);
        setQuery((known) => known && { ...known, state: "failed" });
      }
    }
    setBusy(false);
  }

  async function replay() {
    const last = recorded.current.at(-1)?.at_s || 0, factor = last > 6 ? 6 / last : 1;
    let state = { ...fresh(""), text: form.question }, at = 0;
    setBusy(true);
    for (const event of recorded.current) {
      await new Promise((after) => setTimeout(after, Math.max(60, 1000 * factor * (event.at_s - at))));
      at = event.at_s;
      state = taken(state, event);
      setQuery(state);
    }
    setBusy(false);
  }

  async function share() {
    const style = await (await fetch("style.css")).text();
    const shown = view.current.outerHTML;
    const page = `<!doctype html><html lang="en"><meta charset="utf-8"><title>R2: a query</title><style>${style}</style>` +
      `<body><div id="app"><h1>${document.createElement("i").appendChild(new Text(form.question)).parentNode.innerHTML}</h1>${shown}</div></body></html>`;
    const link = Object.assign(document.createElement("a"), {
      href: URL.createObjectURL(new Blob([page], { type: "text/html" })), download: "r2-query.html",
    });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  return html`<form class="card" onSubmit=${submit}>
    <label style=${{ width: "100%" }}>Question<textarea required value=${form.question} onInput=${set("question")}
      onKeyDown=${(e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && e.target.form.requestSubmit()} /></label>
    <div class="row">
      <${Models} models=${models} value=${form.model} onChange=${set("model")} />
      <label>policy<input value=${form.policy} onInput=${set("policy")} placeholder="as configured" size="14" /></label>
      <label>at most, USD<input value=${form.limit} onInput=${set("limit")} placeholder="no limit" size="8" inputmode="decimal" /></label>
      <button class="main" disabled=${isBusy}>Ask</button>
      ${isBusy && html`<button type="button" onClick=${() => running.current?.abort()}>Stop</button>`}
      ${!isBusy && recorded.current.length > 0 && html`<button type="button" onClick=${replay}>Replay</button>
        <button type="button" onClick=${share}>Save as HTML</button>`}
    </div>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${!query && !error && html`<p class="quiet">Ask something: the plan appears here as soon as it exists.</p>`}
    ${query && html`<div ref=${view}><${QueryView} query=${query} /></div>`}
  </form>`;
}

export function Compare({ models }) {
  const [question, setQuestion] = useState("");
  const [sides, setSides] = useState([
    { model: models[0]?.id || "", policy: "" }, { model: models.at(-1)?.id || "", policy: "" },
  ]);
  const [queries, setQueries] = useState([null, null]);
  const [errors, setErrors] = useState([null, null]);
  const replaced = (list, i, value) => list.map((old, place) => (place === i ? value : old));
  async function submit(e) {
    e.preventDefault();
    setErrors([null, null]);
    await Promise.all(sides.map(async (side, i) => {
      try {
        await asked({ question, ...side }, (query) => setQueries((old) => replaced(old, i, query)), undefined, []);
      } catch (failure) {
        setErrors((old) => replaced(old, i, failure.message));
      }
    }));
  }
  return html`<form class="card" onSubmit=${submit}>
    <label style=${{ width: "100%" }}>Question for both<textarea required value=${question} onInput=${(e) => setQuestion(e.target.value)} /></label>
    <div class="two">${sides.map((side, i) => html`<div key=${i}>
      <div class="row"><${Models} name=${`model ${i + 1}`} models=${models} value=${side.model}
          onChange=${(model) => setSides(replaced(sides, i, { ...side, model }))} />
        <label>policy ${i + 1}<input size="14" value=${side.policy} placeholder="as configured"
          onInput=${(e) => setSides(replaced(sides, i, { ...side, policy: e.target.value }))} /></label></div>
      ${errors[i] && html`<p class="bad" role="alert">${errors[i]}</p>`}
      ${queries[i] && html`<${QueryView} query=${queries[i]} />`}
    </div>`)}</div>
    <div class="row"><button class="main">Ask both</button></div>
  </form>`;
}

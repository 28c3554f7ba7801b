// Ask: a question, its plan as it is made, the answer as it comes, and what it cost beside the direct call.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, events, told, usd } from "./api.js";
import { fresh, taken } from "./query.js";
import { QueryView, SavedView } from "./view.js";

const NUMBER = "[0-9]*[.]?[0-9]+";

// Asks and tells each new state to `show`; the last state holds the whole answer.
async function asked({ question, model, policy, limit, deadline }, show, signal, record) {
  const limits = { ...(limit && { max_cost_usd: limit }), ...(deadline && { deadline_s: Number(deadline) }) };
  const r2 = { events: true, ...(policy && { policy }), ...limits };
  const body = { model, stream: true, r2, messages: [{ role: "user", content: question }] };
  let query = { ...fresh(""), state: "works", text: question, model };
  show(query);
  for await (const { data } of events("chat/completions", { body, signal })) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(null, chunk.error.message);
    if (chunk.r2?.event) {
      record.push(chunk.r2.event);
      query = { ...taken(query, chunk.r2.event), streamed: query.streamed };
    } else {
      query = { ...query, streamed: (query.streamed || "") + (chunk.choices[0]?.delta?.content || "") };
    }
    show(query);
  }
  throw new Error("the stream ended before the answer");
}

export function Models({ models, value, onChange, name = "model" }) {
  return html`<label>${name}<select onChange=${(e) => onChange(e.target.value)}>
    ${models.map((model) => html`<option key=${model.id} selected=${model.id === value}>${model.id}</option>`)}</select></label>`;
}

const ended = (failure) => (known) => known && { ...known, state: failure.name === "AbortError" ? "stopped" : "failed" };

export function Ask({ models }) {
  const [form, setForm] = useState({ question: "", model: models[0]?.id || "", policy: "", limit: "", deadline: "" });
  const [query, setQuery] = useState(null);
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const running = useRef(null), recorded = useRef([]);
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
      setError(told(failure));
      setQuery(ended(failure));
    }
    setBusy(false);
  }

  async function replay() {
    const { signal } = (running.current = new AbortController());
    const last = recorded.current.at(-1)?.at_s || 0, factor = last > 6 ? 6 / last : 1;
    let state = fresh(""), at = 0;
    setBusy(true);
    for (const event of recorded.current) {
      const wait = signal.aborted ? 0 : Math.max(60, 1000 * factor * (event.at_s - at));
      if (wait) await new Promise((after) => setTimeout(after, wait));
      at = event.at_s;
      state = taken(state, event);
      setQuery(state);
    }
    setBusy(false);
  }

  return html`<form class="card" onSubmit=${submit}>
    <label class="whole">Question<textarea required value=${form.question} onInput=${set("question")}
      onKeyDown=${(e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && e.target.form.requestSubmit()} /></label>
    <div class="row">
      <${Models} models=${models} value=${form.model} onChange=${set("model")} />
      <label>policy<input value=${form.policy} onInput=${set("policy")} placeholder="as configured" size="14" /></label>
      <label>at most, USD<input value=${form.limit} onInput=${set("limit")} placeholder="no limit" size="8" inputmode="decimal" pattern=${NUMBER} title="a number" /></label>
      <label>at most, s<input value=${form.deadline} onInput=${set("deadline")} placeholder="no limit" size="8" inputmode="decimal" pattern=${NUMBER} title="a number" /></label>
      <button class="main" disabled=${isBusy}>Ask</button>
      ${isBusy && html`<button type="button" onClick=${() => running.current?.abort()}>Stop</button>`}
    </div>
    ${error && html`<p class="bad" role="alert">${error}</p>`}
    ${!query && !error && html`<p class="quiet">Ask something: the plan appears here as soon as it exists.</p>`}
    ${query && html`<${SavedView} query=${query} title=${query.text} isBusy=${isBusy}>
      ${!isBusy && recorded.current.length > 0 && html`<button type="button" onClick=${replay}>Replay</button>`}<//>`}
  </form>`;
}

function Difference({ queries: [one, two] }) {
  if (one?.state !== "done" || two?.state !== "done") return null;
  const cheaper = one.cost <= two.cost ? 1 : 2, [low, high] = [one.cost, two.cost].sort((a, b) => a - b);
  const by = high ? Math.round(100 * (1 - low / high)) : 0;
  const text = by ? `Side ${cheaper} costs ${by} % less: ${usd(low)} and ${usd(high)}` : `Both cost ${usd(low)}`;
  const same = (one.streamed || one.answer).trim() === (two.streamed || two.answer).trim();
  return html`<p role="status">${text}. The answers are ${same ? "the same" : "different"}.</p>`;
}

export function Compare({ models }) {
  const [question, setQuestion] = useState("");
  const [sides, setSides] = useState([
    { model: models[0]?.id || "", policy: "" }, { model: models.at(-1)?.id || "", policy: "" },
  ]);
  const [queries, setQueries] = useState([null, null]);
  const [errors, setErrors] = useState([null, null]);
  const [isBusy, setBusy] = useState(false);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  const replaced = (list, i, value) => list.map((old, place) => (place === i ? value : old));
  async function submit(e) {
    e.preventDefault();
    running.current = new AbortController();
    setErrors([null, null]);
    setBusy(true);
    await Promise.all(sides.map(async (side, i) => {
      const show = (change) => setQueries((old) => replaced(old, i, typeof change === "function" ? change(old[i]) : change));
      try {
        await asked({ question, ...side }, show, running.current.signal, []);
      } catch (failure) {
        setErrors((old) => replaced(old, i, told(failure)));
        show(ended(failure));
      }
    }));
    setBusy(false);
  }
  return html`<form class="card" onSubmit=${submit}>
    <label class="whole">Question for both<textarea required value=${question} onInput=${(e) => setQuestion(e.target.value)}
      onKeyDown=${(e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && e.target.form.requestSubmit()} /></label>
    <div class="two">${sides.map((side, i) => html`<div class="row" key=${i}>
      <${Models} name=${`model ${i + 1}`} models=${models} value=${side.model}
        onChange=${(model) => setSides(replaced(sides, i, { ...side, model }))} />
      <label>policy ${i + 1}<input size="14" value=${side.policy} placeholder="as configured"
        onInput=${(e) => setSides(replaced(sides, i, { ...side, policy: e.target.value }))} /></label></div>`)}</div>
    <div class="row"><button class="main" disabled=${isBusy}>Ask both</button>
      ${isBusy && html`<button type="button" onClick=${() => running.current?.abort()}>Stop</button>`}</div>
    <${Difference} queries=${queries} />
    <div class="two">${sides.map((side, i) => html`<div key=${i}>
      ${errors[i] && html`<p class="bad" role="alert">${errors[i]}</p>`}
      ${queries[i] ? html`<${QueryView} query=${queries[i]} label=${`Side ${i + 1}`} />` : !errors[i] && html`<p class="quiet">Side ${i + 1} appears here.</p>`}
    </div>`)}</div>
  </form>`;
}

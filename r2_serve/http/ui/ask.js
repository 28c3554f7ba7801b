// Ask: a question, its plan as it is made, the answer as it comes, and what it cost beside the direct call.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, events, told, usd } from "./api.js";
import { OwnBudget } from "./state.js";
import { ended, fresh, taken } from "./query.js";
import { QueryView, SavedView } from "./view.js";

const NUMBER = "[0-9]*[.]?[0-9]+";
const ROUTED = (model) => model.r2.is_virtual;

// Asks and tells each new state to `show`; the last state holds the whole answer.
async function asked({ question, model, policy, limit, deadline }, show, signal) {
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
      query = { ...taken(query, chunk.r2.event), streamed: query.streamed };
    } else {
      query = { ...query, streamed: (query.streamed || "") + (chunk.choices[0]?.delta?.content || "") };
    }
    show(query);
  }
  throw new Error("the stream ended before the answer");
}

function Models({ models, value, onChange, name = "model" }) {
  const group = (label, members) => members.length > 0 && html`<optgroup label=${label}>
    ${members.map((model) => html`<option key=${model.id} selected=${model.id === value} title=${model.r2.description}>${model.id}</option>`)}</optgroup>`;
  return html`<label>${name}<select onChange=${(e) => onChange(e.target.value)}>
    ${group("routed", models.filter(ROUTED))}${group("one model alone", models.filter((model) => !ROUTED(model)))}</select></label>`;
}

// A policy is free text; those that are known for a routed model are offered.
function Policy({ models, model, value, onInput, name = "policy" }) {
  const chosen = models.find(({ id }) => id === model);
  if (!chosen || !ROUTED(chosen)) return null;
  const known = ["learned", "cheapest", "random", "one:auto", ...(chosen.r2.gates || []).flatMap((gate) => [`all:${gate}`, `one:${gate}`])];
  const list = `${name.replace(" ", "-")}-list`;
  return html`<label>${name}<input value=${value} onInput=${onInput} placeholder="as configured" size="14" list=${list} />
    <datalist id=${list}>${known.map((policy) => html`<option value=${policy} />`)}</datalist></label>`;
}

// What may be asked, for those who have no question yet.
function Examples({ models, onPick }) {
  const found = models.filter((model) => model.r2.example);
  if (!found.length) return null;
  return html`<div class="examples"><p class="quiet">Or try one of these:</p>
    ${found.map((model) => html`<button type="button" key=${model.id} onClick=${() => onPick(model)}><span class="quiet">${[model.id, model.r2.description].filter(Boolean).join(": ")}</span>${model.r2.example}</button>`)}</div>`;
}

// A model that is not routed takes no policy.
const sendable = (form, models) => (models.some(({ id, r2 }) => id === form.model && r2.is_virtual) ? form : { ...form, policy: "" });

const broken = (failure) => (query) => query && ended(query, failure.name === "AbortError" ? "stopped" : "failed", told(failure) || query.error);

export function Ask({ models }) {
  const [form, setForm] = useState({ question: "", model: models[0].id, policy: "", limit: "", deadline: "" });
  const [query, setQuery] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const running = useRef(null), result = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  useEffect(() => {
    const isLow = result.current.getBoundingClientRect().top > innerHeight / 2; // as on a phone
    if (isBusy && isLow) result.current.scrollIntoView();
  }, [isBusy]);
  const set = (name) => (e) => setForm({ ...form, [name]: e.target?.value ?? e });

  async function submit(e) {
    e.preventDefault();
    running.current = new AbortController();
    setBusy(true);
    try {
      await asked(sendable(form, models), setQuery, running.current.signal);
    } catch (failure) {
      setQuery(broken(failure));
    }
    setBusy(false);
  }

  return html`<form class="card" onSubmit=${submit}>
    <label class="whole">Question<textarea required value=${form.question} onInput=${set("question")}
      onKeyDown=${(e) => (e.ctrlKey || e.metaKey) && e.key === "Enter" && e.target.form.requestSubmit()} /></label>
    <div class="row">
      <${Models} models=${models} value=${form.model} onChange=${set("model")} />
      <${Policy} models=${models} model=${form.model} value=${form.policy} onInput=${set("policy")} />
      <label>cost limit, USD<input value=${form.limit} onInput=${set("limit")} placeholder="no limit" size="8" inputmode="decimal" pattern=${NUMBER} title="a number" /></label>
      <label>time limit, s<input value=${form.deadline} onInput=${set("deadline")} placeholder="no limit" size="8" inputmode="decimal" pattern=${NUMBER} title="a number" /></label>
      <button class="main" disabled=${isBusy}>Ask</button>
      ${isBusy && html`<button type="button" onClick=${() => running.current?.abort()}>Stop</button>`}
    </div>
    ${!query && html`<p class="quiet">Ask something: the plan appears here as soon as it exists.</p>
      <${Examples} models=${models} onPick=${(model) => setForm({ ...form, question: model.r2.example, model: model.id, policy: "" })} />`}
    <div ref=${result}>${query && html`<${SavedView} query=${query} title=${query.text} isBusy=${isBusy} />`}</div>
    <${OwnBudget} isBusy=${isBusy} />
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
    { model: models[0].id, policy: "" }, ROUTED(models[0]) ? { model: models[0].id, policy: "cheapest" } : { model: models.at(-1).id, policy: "" },
  ]);
  const [queries, setQueries] = useState([null, null]);
  const [isBusy, setBusy] = useState(false);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  const replaced = (list, i, value) => list.map((old, place) => (place === i ? value : old));
  async function submit(e) {
    e.preventDefault();
    running.current = new AbortController();
    setBusy(true);
    await Promise.all(sides.map(async (side, i) => {
      const show = (change) => setQueries((old) => replaced(old, i, typeof change === "function" ? change(old[i]) : change));
      try {
        await asked(sendable({ question, ...side }, models), show, running.current.signal);
      } catch (failure) {
        show(broken(failure));
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
      <${Policy} name=${`policy ${i + 1}`} models=${models} model=${side.model} value=${side.policy}
        onInput=${(e) => setSides(replaced(sides, i, { ...side, policy: e.target.value }))} /></div>`)}</div>
    <div class="row"><button class="main" disabled=${isBusy}>Ask both</button>
      ${isBusy && html`<button type="button" onClick=${() => running.current?.abort()}>Stop</button>`}</div>
    <${Difference} queries=${queries} />
    <div class="two">${sides.map((side, i) => html`<div key=${i}>
      ${queries[i] ? html`<${QueryView} query=${queries[i]} label=${`Side ${i + 1}`} />` : html`<p class="quiet">Side ${i + 1} appears here.</p>`}
    </div>`)}</div>
  </form>`;
}

// Traffic: the latest queries and those that come, what they cost, and the state of models and keys.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, events, seconds, usd } from "./api.js";
import { fresh, taken } from "./query.js";
import { State } from "./state.js";
import { SavedView } from "./view.js";

const MOST = 1000;
const SHOWN = 200;
const PAST = 1000;

// The feed of events into a map of queries, redrawn at most four times a second while it is seen.
export function useTraffic(isSeen) {
  const [version, setVersion] = useState(0);
  const [connection, setConnection] = useState("connecting");
  const queries = useRef(new Map()), due = useRef(null), lost = useRef(0), seen = useRef(isSeen);
  seen.current = isSeen;
  useEffect(() => {
    const stop = new AbortController();
    const redraw = () => seen.current && (due.current ??= setTimeout(() => { due.current = null; setVersion((n) => n + 1); }, 250));
    const take = (event) => {
      if (event.kind === "watching") return setConnection("loading");
      if (event.kind === "live") return setConnection("connected");
      if (event.kind === "lost") lost.current += event.events;
      if (!event.request_id) return;
      const known = queries.current.get(event.request_id) || fresh(event.request_id);
      queries.current.set(event.request_id, taken(known, event));
      if (queries.current.size > MOST) queries.current.delete(queries.current.keys().next().value);
      redraw();
    };
    (async () => {
      for (let wait = 1; !stop.signal.aborted; wait = Math.min(2 * wait, 30)) {
        try {
          for await (const { data } of events(`r2/events?recent=${PAST}`, { signal: stop.signal })) {
            take(JSON.parse(data));
            wait = 1;
          }
        } catch (failure) {
          if (stop.signal.aborted) return;
          if (failure instanceof Refused) return setConnection(failure.message);
        }
        setConnection("disconnected");
        await new Promise((after) => setTimeout(after, wait * 1000));
      }
    })();
    return () => { stop.abort(); clearTimeout(due.current); };
  }, []);
  useEffect(() => { if (isSeen) setVersion((n) => n + 1); }, [isSeen]);
  return { queries: queries.current, version, connection, lost: lost.current };
}

// The colour of a variable of the style sheet as a canvas takes it.
function colour(name) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function Plot({ title, label, xs, ys }) {
  const place = useRef(null);
  useEffect(() => {
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 } };
    const bars = { label, fill: colour("--accent"), paths: uPlot.paths.bars({ size: [0.8] }), points: { show: false } };
    const options = {
      title, width: place.current.clientWidth, height: 180, axes: [axis, axis], legend: { show: false }, series: [{}, bars],
      scales: { y: { range: (_, __, most) => [0, most || 1] } },
    };
    const plot = new uPlot(options, [xs, ys], place.current);
    return () => plot.destroy();
  }, [xs.at(-1), ys.join(), document.documentElement.dataset.theme]);
  return html`<div class="plot" ref=${place} role="img" aria-label=${`${title}: last value ${ys.at(-1) ?? 0}`} />`;
}

// Counts per minute of the last half hour.
function perMinute(queries, value) {
  const now = Math.floor(Date.now() / 60000), xs = [...Array(30).keys()].map((i) => (now - 29 + i) * 60);
  const ys = xs.map(() => 0);
  for (const query of queries) {
    const place = Math.floor(query.since / 60000) - (now - 29);
    if (place >= 0) ys[place] += value(query);
  }
  return { xs, ys };
}

// Sums over the queries that are known here.
function summary(queries) {
  const shares = new Map(), found = { failed: 0, failedCalls: 0, spent: 0, saved: 0, baseline: 0 };
  const count = (model) => shares.set(model, (shares.get(model) || 0) + 1);
  for (const query of queries) {
    found.failed += query.state === "failed";
    found.spent += query.cost;
    if (query.saved !== undefined) {
      found.saved += Number(query.saved);
      found.baseline += Number(query.saved) + query.cost;
    }
    for (const call of query.calls) found.failedCalls += call.outcome === "failed";
    const steps = query.steps.filter((step) => step.state === "done");
    if (steps.length) for (const step of steps) count(step.model);
    else if (query.state === "done" && query.calls.length) count(query.calls.at(-1).model);
  }
  const all = [...shares.values()].reduce((sum, n) => sum + n, 0) || 1;
  found.shares = [...shares].sort((a, b) => b[1] - a[1]).map(([model, n]) => [model, Math.round((100 * n) / all)]);
  return found;
}

function Sums({ queries }) {
  const found = summary(queries), percent = found.baseline ? Math.round((100 * found.saved) / found.baseline) : 0;
  const tile = (name, value, tone = "") => html`<div class="tile"><dt>${name}</dt><dd class=${tone}>${value}</dd></div>`;
  return html`<dl class="tiles">${tile("queries", queries.length)}${tile("spent", usd(found.spent))}
      ${tile("saved against the baseline", found.baseline ? `${usd(found.saved)} (${percent} %)` : "not known")}
      ${tile("failed queries", found.failed, found.failed ? "bad" : "")}${tile("failed calls", found.failedCalls, found.failedCalls ? "bad" : "")}</dl>
    <table><caption class="quiet">Steps by the model that answered</caption>
      <tbody>${found.shares.map(([model, share]) => html`<tr key=${model}><th scope="row">${model}</th>
        <td class="time"><div class="bar" role="img" aria-label=${`${share} %`}><div style=${{ width: `${share}%` }} /></div></td>
        <td class="number">${share} %</td></tr>`)}</tbody></table>`;
}

function Opened({ query, onClose }) {
  const heading = useRef(null);
  useEffect(() => heading.current.focus(), [query.id]);
  return html`<div class="card inner"><h2 ref=${heading} tabindex="-1">${query.text || query.id}</h2>
    <${SavedView} query=${query} title=${query.text || query.id}><button type="button" onClick=${onClose}>Close</button><//></div>`;
}

const clock = (since) => new Date(since).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const STATUS = { connected: "Live", loading: "Loading the latest queries", connecting: "Connecting", disconnected: "disconnected: trying again" };

export function Traffic({ traffic }) {
  const [filter, setFilter] = useState({ model: "", state: "", cost: "" });
  const [open, setOpen] = useState(null);
  const opener = useRef(null);
  const all = useMemo(() => [...traffic.queries.values()].reverse().sort((a, b) => b.since - a.since), [traffic.version]);
  const found = all.filter((query) => (!filter.model || query.model === filter.model)
    && (!filter.state || query.state === filter.state) && query.cost >= Number(filter.cost || 0) / 1e6);
  const names = [...new Set(all.map((query) => query.model))];
  const set = (name) => (e) => setFilter({ ...filter, [name]: e.target.value });
  const shown = open && traffic.queries.get(open);
  const count = perMinute(all, () => 1), spend = perMinute(all, (query) => query.cost * 1e6);
  const show = (query) => (e) => { opener.current = e.currentTarget; setOpen(query.id); };
  const close = () => { setOpen(null); opener.current?.focus(); };
  return html`<div class="card">
    <p class="quiet" role="status">${STATUS[traffic.connection] || traffic.connection}${traffic.lost ? `; ${traffic.lost} events were too fast for this page` : ""}</p>
    ${!all.length && traffic.connection === "connected" && html`<p class="quiet">No query has come yet. Ask one, or let your clients ask.</p>`}
    ${all.length > 0 && html`<${Sums} queries=${all} />
      <div class="two"><${Plot} title="Queries per minute" label="queries" ...${count} /><${Plot} title="Spend per minute, µ$" label="µ$" ...${spend} /></div>`}
    <${State} />
    ${shown && html`<${Opened} key=${shown.id} query=${shown} onClose=${close} />`}
    ${all.length > 0 && html`<div class="row">
        <label>model<select value=${filter.model} onChange=${set("model")}><option value="">all</option>${names.map((name) => html`<option>${name}</option>`)}</select></label>
        <label>state<select value=${filter.state} onChange=${set("state")}><option value="">all</option>
          ${[["works", "at work"], ["done", "answered"], ["failed", "failed"]].map(([state, name]) => html`<option value=${state}>${name}</option>`)}</select></label>
        <label>at least, µ$<input size="8" inputmode="decimal" value=${filter.cost} onInput=${set("cost")} /></label>
      </div>
      <div class="table" tabindex="0" role="group" aria-label="Queries"><table><caption class="quiet">${found.length} of ${all.length} queries${found.length > SHOWN ? `; the last ${SHOWN} are shown` : ""}</caption>
        <thead><tr>${["query", "at", "model", "state"].map((name) => html`<th scope="col">${name}</th>`)}
          ${["steps", "time", "cost"].map((name) => html`<th scope="col" class="number">${name}</th>`)}</tr></thead>
        <tbody>${found.slice(0, SHOWN).map((query) => html`<tr key=${query.id} class="link">
          <td><button type="button" class="text" onClick=${show(query)}>${(query.text || query.id).slice(0, 60)}</button></td><td>${clock(query.since)}</td><td>${query.model}</td>
          <td class=${query.state === "failed" ? "bad" : ""}>${{ works: "at work", done: "answered" }[query.state] || query.state}</td><td class="number">${query.steps.length || ""}</td>
          <td class="number">${seconds(query.at)}</td><td class="number">${usd(query.cost)}</td></tr>`)}</tbody></table></div>`}
  </div>`;
}

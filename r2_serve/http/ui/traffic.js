// Traffic: the queries since the page was opened, as they happen, and what they cost.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, events, seconds, usd } from "./api.js";
import { QueryView } from "./ask.js";
import { fresh, taken } from "./query.js";

const MOST = 1000;
const SHOWN = 200;

// The feed of events into a map of queries, redrawn at most four times a second.
export function useTraffic() {
  const [version, setVersion] = useState(0);
  const [connection, setConnection] = useState("connecting");
  const queries = useRef(new Map()), due = useRef(null), lost = useRef(0);
  useEffect(() => {
    const stop = new AbortController();
    const redraw = () => (due.current ??= setTimeout(() => { due.current = null; setVersion((n) => n + 1); }, 250));
    const take = (event) => {
      if (event.kind === "watching") return setConnection("connected");
      if (event.kind === "lost") lost.current += event.events;
      if (!event.request_id) return;
      const known = queries.current.get(event.request_id) || { ...fresh(event.request_id), since: Date.now() };
      queries.current.set(event.request_id, taken(known, event));
      if (queries.current.size > MOST) queries.current.delete(queries.current.keys().next().value);
      redraw();
    };
    (async () => {
      for (let wait = 1; !stop.signal.aborted; wait = Math.min(2 * wait, 30)) {
        try {
          for await (const { data } of events("r2/events", { signal: stop.signal })) {
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

const Shares = ({ queries }) => {
  const counts = new Map();
  let errors = 0;
  for (const query of queries) for (const call of query.calls) {
    errors += call.outcome !== "ok";
    if (call.subtask) counts.set(call.model, (counts.get(call.model) || 0) + 1);
  }
  const all = [...counts.values()].reduce((sum, n) => sum + n, 0) || 1;
  const rows = [...counts].sort((a, b) => b[1] - a[1]);
  return html`<table><caption class="quiet">Calls of subtasks by model; ${errors} failed calls</caption>
    <tbody>${rows.map(([model, n]) => html`<tr><td>${model}</td><td class="number">${Math.round((100 * n) / all)} %</td></tr>`)}</tbody></table>`;
};

export function Traffic({ traffic }) {
  const [filter, setFilter] = useState({ model: "", state: "", cost: "" });
  const [open, setOpen] = useState(null);
  const all = useMemo(() => [...traffic.queries.values()].reverse(), [traffic.version]);
  const found = all.filter((query) => (!filter.model || query.model === filter.model)
    && (!filter.state || query.state === filter.state) && query.cost >= Number(filter.cost || 0) / 1e6);
  const names = [...new Set(all.map((query) => query.model))];
  const set = (name) => (e) => setFilter({ ...filter, [name]: e.target.value });
  const shown = open && traffic.queries.get(open);
  const count = perMinute(all, () => 1), spend = perMinute(all, (query) => query.cost * 1e6);
  return html`<div class="card">
    <p class="quiet" role="status">${traffic.connection === "connected" ? "Live: queries since this page was opened" : traffic.connection}
      ${traffic.lost ? `; ${traffic.lost} events were too fast for this page` : ""}</p>
    ${!all.length && html`<p class="quiet">No query has come yet. Ask one, or let your clients ask.</p>`}
    ${all.length > 0 && html`<div class="two">
      <${Plot} title="Queries per minute" label="queries" ...${count} /><${Plot} title="Spend per minute, µ$" label="µ$" ...${spend} /></div>
      <${Shares} queries=${all} />
      <div class="row">
        <label>model<select value=${filter.model} onChange=${set("model")}><option value="">all</option>${names.map((name) => html`<option>${name}</option>`)}</select></label>
        <label>state<select value=${filter.state} onChange=${set("state")}><option value="">all</option>${["works", "done", "failed"].map((state) => html`<option>${state}</option>`)}</select></label>
        <label>at least, µ$<input size="8" inputmode="decimal" value=${filter.cost} onInput=${set("cost")} /></label>
      </div>
      <div class="table"><table><caption class="quiet">${found.length} of ${all.length} queries${found.length > SHOWN ? `; the last ${SHOWN} are shown` : ""}</caption>
        <thead><tr><th>query</th><th>model</th><th>state</th><th class="number">steps</th><th class="number">time</th><th class="number">cost</th></tr></thead>
        <tbody>${found.slice(0, SHOWN).map((query) => html`<tr key=${query.id} class="link" onClick=${() => setOpen(query.id)}>
          <td><button type="button" onClick=${() => setOpen(query.id)}>${(query.text || query.id).slice(0, 60)}</button></td><td>${query.model}</td>
          <td class=${query.state === "failed" ? "bad" : ""}>${query.state}</td><td class="number">${query.steps.length || ""}</td>
          <td class="number">${seconds(query.at)}</td><td class="number">${usd(query.cost)}</td></tr>`)}</tbody></table></div>`}
    ${shown && html`<div class="card"><div class="row"><h2>${shown.text || shown.id}</h2><button type="button" onClick=${() => setOpen(null)}>Close</button></div>
      <${QueryView} query=${shown} /></div>`}
  </div>`;
}

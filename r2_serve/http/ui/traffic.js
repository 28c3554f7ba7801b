// Traffic: the latest queries and those that come, what they cost, and the state of models and keys.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, events, seconds, usd } from "./api.js";
import { fresh, lost, taken, titleOf } from "./query.js";
import { State } from "./state.js";
import { SavedView } from "./view.js";

const MOST = 1000;
const SHOWN = 200;
const PAST = 1000;
const SHARES = 4;
const LONG = 160;
const LATE_MS = 15000;
const ENDED = "its router replica ended";
const nameOf = (event) => `${event.client || ""} ${event.request_id}`;

// The feed of events into a map of queries, redrawn at most four times a second while it is seen.
export function useTraffic(isSeen) {
  const [version, setVersion] = useState(0);
  const [connection, setConnection] = useState("connecting");
  const queries = useRef(new Map()), due = useRef(null), missed = useRef(0), seen = useRef(isSeen);
  seen.current = isSeen;
  useEffect(() => {
    const stop = new AbortController();
    const redraw = () => seen.current && (due.current ??= setTimeout(() => { due.current = null; setVersion((n) => n + 1); }, 250));
    const atWork = () => [...queries.current].filter(([, query]) => query.state === "works");
    const lose = (found, why) => {
      for (const [name, query] of found) queries.current.set(name, lost(query, why));
      if (found.length) redraw();
    };
    const loseLate = () => lose(atWork().filter(([, query]) => query.deadline && Date.now() > query.since + 1000 * query.deadline + LATE_MS),
      "no end came within its time limit");
    const timer = setInterval(loseLate, LATE_MS);
    let untold = new Map(); // those at work before this connection, of which it has said nothing
    const take = (event) => {
      if (event.kind === "watching") { untold = new Map(atWork()); return setConnection("loading"); }
      if (event.kind === "live") { lose([...untold], ENDED); return setConnection("connected"); }
      if (event.kind === "lost") missed.current += event.events;
      if (!event.request_id) return;
      const name = nameOf(event), known = queries.current.get(name);
      untold.delete(name);
      if (known && known.state !== "works" && event.kind === "started" && known.since !== 1000 * event.began_s) {
        queries.current.set(`${name} ${known.since}`, { ...known, id: `${name} ${known.since}` }); // an id that its client used before
      }
      queries.current.set(name, taken(known || fresh(name), event));
      while (queries.current.size > MOST) queries.current.delete(queries.current.keys().next().value);
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
    return () => { stop.abort(); clearTimeout(due.current); clearInterval(timer); };
  }, []);
  useEffect(() => { if (isSeen) setVersion((n) => n + 1); }, [isSeen]);
  return { queries: queries.current, version, connection, missed: missed.current };
}

// The colour of a variable of the style sheet as a canvas takes it.
function colour(name) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

function Plot({ title, xs, ys, isCount }) {
  const place = useRef(null);
  useEffect(() => {
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const times = { ...axis, grid: { show: false }, values: (_, ticks) => ticks.map((s) => clock(s * 1000)), space: 70, size: 36 };
    const bars = { fill: colour("--accent"), paths: uPlot.paths.bars({ size: [0.8] }), points: { show: false } };
    const options = {
      width: place.current.clientWidth, height: 150, axes: [times, isCount ? { ...axis, incrs: WHOLE } : axis], padding: [null, 24, null, null], legend: { show: false }, series: [{}, bars], cursor: { show: false },
      scales: { y: { range: (_, __, most) => [0, most || 1] } },
    };
    const plot = new uPlot(options, [xs, ys], place.current);
    return () => plot.destroy();
  }, [xs.at(-1), ys.join(), document.documentElement.dataset.theme]);
  return html`<figure><figcaption class="quiet">${title}</figcaption>
    <div class="plot" ref=${place} role="img" aria-label=${`${title}: last value ${ys.at(-1) ?? 0}`} /></figure>`;
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
  const ordered = [...shares].sort((a, b) => b[1] - a[1]), rest = ordered.slice(SHARES).reduce((sum, [, n]) => sum + n, 0);
  const shown = rest ? [...ordered.slice(0, SHARES), [`${ordered.length - SHARES} others`, rest]] : ordered;
  found.shares = shown.map(([model, n]) => [model, Math.round((100 * n) / all)]);
  return found;
}

// The unit in which a spend of so many dollars is easy to read, and how many of it are a dollar.
const unitOf = (usd) => (usd >= 0.1 ? ["USD", 1] : usd >= 1e-4 ? ["m$", 1e3] : ["µ$", 1e6]);

function Sums({ queries }) {
  const count = perMinute(queries, () => 1), spend = perMinute(queries, (query) => query.cost), [unit, factor] = unitOf(Math.max(...spend.ys));
  const found = summary(queries), percent = found.baseline ? Math.round((100 * found.saved) / found.baseline) : 0;
  const tile = (name, value, tone = "") => html`<div class="tile"><dt>${name}</dt><dd class=${tone}>${value}</dd></div>`;
  return html`<dl class="tiles">${tile("queries", queries.length)}${tile("spent", usd(found.spent))}
      ${tile("saved against the baseline", found.baseline ? `${usd(found.saved)} (${percent} %)` : "not known")}
      ${tile("failed queries", found.failed, found.failed ? "bad" : "")}${tile("failed calls", found.failedCalls, found.failedCalls ? "bad" : "")}</dl>
    <div class="charts"><${Plot} title="Queries per minute" isCount ...${count} />
      <${Plot} title=${`Spend per minute, ${unit}`} xs=${spend.xs} ys=${spend.ys.map((usd) => usd * factor)} />
    ${found.shares.length > 0 && html`<table><caption class="quiet">Steps by the model that answered</caption>
      <tbody>${found.shares.map(([model, share]) => html`<tr key=${model}><th scope="row">${model}</th>
        <td class="time"><div class="bar" role="img" aria-label=${`${share} %`}><div style=${{ width: `${share}%` }} /></div></td>
        <td class="number">${share} %</td></tr>`)}</tbody></table>`}</div>`;
}

function Opened({ query, onClose }) {
  const heading = useRef(null), title = query.text ? titleOf(query) : "A query whose text is not shown";
  useEffect(() => heading.current.focus(), [query.id]);
  return html`<div class="card inner"><h2 ref=${heading} tabindex="-1">${title.length > LONG ? `${title.slice(0, LONG)}…` : title}</h2>
    ${query.text && (title.length > LONG || title !== query.text) && html`<details><summary>The whole conversation</summary><p class="long">${query.text}</p></details>`}
    <p class="quiet long">${[query.model, query.client && `key ${query.client}`, new Date(query.since).toLocaleString(), query.request].filter(Boolean).join(", ")}</p>
    <${SavedView} query=${query} title=${title}><button type="button" onClick=${onClose}>Close</button><//></div>`;
}

const clock = (since, seconds) => new Date(since).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: seconds });
const STATUS = { connected: "Live", loading: "Loading the latest queries", connecting: "Connecting", disconnected: "disconnected: trying again" };

export function Traffic({ traffic }) {
  const [filter, setFilter] = useState({ model: "", state: "", cost: "" });
  const [open, setOpen] = useState(null);
  const opener = useRef(null);
  const all = useMemo(() => [...traffic.queries.values()].reverse().sort((a, b) => b.since - a.since), [traffic.version]);
  const found = all.filter((query) => (!filter.model || query.model === filter.model)
    && (!filter.state || query.state === filter.state) && query.cost >= Number(filter.cost || 0));
  const hasClients = all.some((query) => query.client);
  const columns = [["query", ""], ["at", "number wide"], ["model", "wide"], ...(hasClients ? [["key", "wide"]] : []), ["state", ""], ["steps", "number wide"],
    ["time", "number"], ["cost", "number"]];
  const names = [...new Set(all.map((query) => query.model))];
  const set = (name) => (e) => setFilter({ ...filter, [name]: e.target.value });
  const shown = open && traffic.queries.get(open);
  const show = (query) => (e) => { opener.current = e.currentTarget; setOpen(query.id); };
  const close = () => { setOpen(null); opener.current?.focus(); };
  return html`<div class="card">
    <p class="facts quiet" role="status"><strong class=${{ connected: "good", disconnected: "bad" }[traffic.connection] || ""}>${STATUS[traffic.connection] || traffic.connection}</strong>${traffic.missed ? `; ${traffic.missed} events were too fast for this page` : ""}</p>
    ${!all.length && traffic.connection === "connected" && html`<p class="quiet">No query has come yet. Ask one, or let your clients ask.</p>`}
    ${all.length > 0 && html`<${Sums} queries=${all} />`}
    <${State} />
    ${shown && html`<${Opened} key=${shown.id} query=${shown} onClose=${close} />`}
    ${all.length > 0 && html`<div class="row">
        <label>model<select value=${filter.model} onChange=${set("model")}><option value="">all</option>${names.map((name) => html`<option>${name}</option>`)}</select></label>
        <label>state<select value=${filter.state} onChange=${set("state")}><option value="">all</option>
          ${[["works", "at work"], ["done", "answered"], ["failed", "failed"], ["stopped", "stopped"]].map(([state, name]) => html`<option value=${state}>${name}</option>`)}</select></label>
        <label>cost at least, USD<input size="8" inputmode="decimal" value=${filter.cost} onInput=${set("cost")} /></label>
      </div>
      <div class="table" tabindex="0" role="group" aria-label="Queries"><table><caption class="quiet">${found.length} of ${all.length} queries${found.length > SHOWN ? `; the last ${SHOWN} are shown` : ""}</caption>
        <thead><tr>${columns.map(([name, kind]) => html`<th scope="col" class=${kind}>${name}</th>`)}</tr></thead>
        <tbody>${found.slice(0, SHOWN).map((query) => html`<tr key=${query.id} class="link">
          <td class="name"><button type="button" class="text" onClick=${show(query)}>${titleOf(query).slice(0, 200)}</button></td>
          <td class="number wide">${clock(query.since, "2-digit")}</td><td class="wide">${query.model}</td>${hasClients && html`<td class="wide">${query.client}</td>`}
          <td class=${{ failed: "bad", works: "busy" }[query.state] || ""}>${{ works: "at work", done: "answered" }[query.state] || query.state}</td>
          <td class="number wide">${query.steps.length || ""}</td><td class="number">${seconds(query.at)}</td><td class="number">${usd(query.cost)}</td></tr>`)}</tbody></table></div>`}
  </div>`;
}

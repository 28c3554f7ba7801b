// The plan as a graph, laid out by dagre from left to right (from top to bottom on narrow screens).

import { html, useEffect, useMemo, useState } from "./vendor/preact-htm.js";
import { Graph, layout } from "./vendor/dagre.js";
import { seconds, usd } from "./api.js";

const WIDE = { width: 190, chars: 24, smallest: 0.75 }, NARROW = { width: 150, chars: 18, smallest: 1 }, HEIGHT = 84;
const NAMES = { waits: "waits", works: "at work", done: "done", failed: "failed", stopped: "stopped" };
const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

function placed(steps, isNarrow, width) {
  const graph = new Graph();
  graph.setGraph({ rankdir: isNarrow ? "TB" : "LR", nodesep: isNarrow ? 10 : 18, ranksep: isNarrow ? 24 : 44, marginx: 6, marginy: 6 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const step of steps) graph.setNode(String(step.id), { width, height: HEIGHT });
  for (const step of steps) for (const needed of step.needs) graph.setEdge(String(needed), String(step.id));
  layout(graph);
  return graph;
}

const gateText = (step) => step.asked.map((ask) => `${ask.model} ${ask.outcome}`).join(", ");
const whoAnswered = (step) => (step.asked.length > 1 ? step.asked.map((ask) => ask.model).join(" → ") : step.model);

function Node({ step, x, y, width, chars }) {
  const title = `Step ${step.id}: ${step.text}. ${NAMES[step.state]}. ${step.model}. ${gateText(step)} ${step.answer}`;
  const time = step.endedAt === undefined ? "" : `, ${seconds(step.endedAt - step.startedAt)}`;
  const calls = step.calls > 1 ? `, ${step.calls} calls` : "";
  return html`<g class="node ${step.state}" transform="translate(${x - width / 2},${y - HEIGHT / 2})" role="listitem" aria-label=${title}>
    <title>${title}</title>
    <rect width=${width} height=${HEIGHT} rx="8" />
    <svg width=${width - 6} height=${HEIGHT}>
      <text x="10" y="22" class="title">#${step.id} ${short(step.text, chars - 5)}</text>
      <text x="10" y="39" class="small">${short(whoAnswered(step), chars + 5)}</text>
      <text x="10" y="57">${short(step.answer, chars)}</text>
      <text x="10" y="74" class="small">${step.calls ? `${usd(step.cost)}${time}${calls || `, ${step.tokens} tok`}` : NAMES[step.state]}</text>
    </svg>
  </g>`;
}

function useNarrow() {
  const query = matchMedia("(max-width: 40rem)");
  const [isNarrow, setNarrow] = useState(query.matches);
  useEffect(() => {
    const changed = () => setNarrow(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return isNarrow;
}

export function PlanGraph({ steps }) {
  const isNarrow = useNarrow();
  const { width: nodeWidth, chars, smallest } = isNarrow ? NARROW : WIDE;
  const shape = steps.map((step) => `${step.id}:${step.needs}`).join();
  const graph = useMemo(() => placed(steps, isNarrow, nodeWidth), [shape, isNarrow]);
  if (!steps.length) return null;
  const { width, height } = graph.graph();
  const path = (points) => "M" + points.map(({ x, y }) => `${x},${y}`).join(" L");
  return html`<div class="graph" role="list" aria-label="Plan of ${steps.length} steps" tabindex="0">
    <svg viewBox="0 0 ${width} ${height}" style=${{ width: `${width}px`, maxWidth: `max(100%, ${smallest * width}px)` }}>
      ${graph.edges().map((edge) => html`<path class="edge" d=${path(graph.edge(edge).points)} />`)}
      ${steps.map((step) => html`<${Node} key=${step.id} step=${step} chars=${chars} ...${graph.node(String(step.id))} />`)}
    </svg>
  </div>`;
}

export function Waterfall({ query }) {
  if (!query.calls.length) return null;
  const end = Math.max(...query.calls.map((call) => call.end_s), 0.001), calls = query.calls.toSorted((a, b) => a.start_s - b.start_s);
  const hasErrors = calls.some((call) => call.outcome !== "ok");
  const row = (call) => {
    const left = (100 * call.start_s) / end, width = (100 * (call.end_s - call.start_s)) / end;
    const span = `${call.start_s.toFixed(2)} to ${call.end_s.toFixed(2)} s`;
    return html`<tr>
      <td>${call.subtask ? `step ${call.subtask}` : call.stage}</td><td>${call.model}${call.attempt > 1 ? `, try ${call.attempt}` : ""}</td>
      <td class="time"><div class="span ${call.outcome === "ok" ? "" : "failed"}" style=${{ marginLeft: `${left}%`, width: `${width}%` }} role="img" title=${span} aria-label=${span} /></td>
      <td class="number wide">${call.prompt_tokens} + ${call.completion_tokens}</td><td class="number">${usd(call.cost_usd)}</td>
      ${hasErrors && html`<td class="bad">${call.outcome === "ok" ? "" : call.error || call.outcome}</td>`}
    </tr>`;
  };
  return html`<div class="table" tabindex="0" role="group" aria-label="Calls of models"><table class="waterfall"><caption class="quiet">Calls of models over ${end.toFixed(2)} s</caption>
    <thead><tr><th scope="col">for</th><th scope="col">model</th><th scope="col">time</th><th scope="col" class="number wide">tokens</th><th scope="col" class="number">cost</th>${hasErrors && html`<th scope="col">error</th>`}</tr></thead>
    <tbody>${calls.map(row)}</tbody></table></div>`;
}

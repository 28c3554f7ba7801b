// What is known of one query, from its events. `taken(query, event)` gives the next state and changes nothing.

export const fresh = (id) => ({
  id, state: "waits", steps: [], calls: [], cost: 0, routerCost: 0, at: 0, text: "", answer: "", model: "",
  since: Date.now(), events: [],
});

const stepsOf = (plan) => plan.subtasks.map((step) => ({
  id: step.id, text: step.text, needs: step.depends_on, state: "waits", model: "", answer: "", cost: 0, asked: [], calls: 0, tokens: 0,
}));

const withStep = (query, id, change) => ({
  ...query, steps: query.steps.map((step) => (step.id === id ? { ...step, ...change(step) } : step)),
});

const CANCELLED = "cancelled by the client";

// What the user said last: a conversation begins with the same instructions each time.
export function titleOf(query) {
  const said = /^\[(?:system|user|developer)\]/.test(query.text) ? [...query.text.matchAll(/^\[user\]([^]*?)(?=^\[(?:system|user|assistant|tool|developer)\]|$(?![^]))/gm)] : [];
  return said.at(-1)?.[1].trim() || query.text || query.request;
}

const takers = {
  // A query that is told again, after a new connection, begins anew.
  started: (query, event) => ({
    ...fresh(query.id), state: "works", text: event.query || "", isPrivate: event.query === undefined, model: event.model,
    client: event.client, since: event.began_s ? 1000 * event.began_s : query.since, deadline: event.deadline_s,
  }),
  decided: (query, event) => ({ ...query, action: event.action, reason: event.reason, direct: event.direct_usd ?? query.direct }),
  planned: (query, event) => ({ ...query, steps: stepsOf(event.plan) }),
  allocated: (query, event) => {
    const steps = stepsOf(event.plan).map((step, i) => ({ ...step, model: event.models[i] }));
    return { ...query, steps };
  },
  step_started: (query, event) => withStep(query, event.subtask, () => ({ state: "works", startedAt: event.at_s })),
  step_done: (query, event) => withStep(query, event.subtask, () => ({
    state: "done", model: event.models[0], answer: event.answer || "", endedAt: event.at_s,
  })),
  called: (query, event) => {
    const call = { ...event.called, subtask: event.subtask };
    const cost = Number(call.cost_usd);
    const isRouter = call.stage === "decompose" || call.stage === "allocate";
    const next = {
      ...query, calls: [...query.calls, call], cost: query.cost + cost, routerCost: query.routerCost + (isRouter ? cost : 0),
    };
    const tokens = call.prompt_tokens + call.completion_tokens;
    return withStep(next, event.subtask, (step) => ({ cost: step.cost + cost, calls: step.calls + 1, tokens: step.tokens + tokens }));
  },
  asked: (query, event) => withStep(query, event.subtask, (step) => ({ asked: [...step.asked, event.asked] })),
  answered: (query, event) => ({ ...query, state: "done", error: undefined, answer: event.answer || query.answer, saved: event.saved_usd }),
  failed: (query, event) => (event.error?.startsWith(CANCELLED) ? ended(query, "stopped", event.error) : ended(query, "failed", event.error || "failed")),
};

// The query without an answer, and so its steps at work.
export const ended = (query, state, error) => ({
  ...query, state, error, steps: query.steps.map((step) => (step.state === "works" ? { ...step, state } : step)),
});

export const replayed = (events) => events.reduce(taken, fresh(""));

// The query with an end that nobody told; it comes back to life if an event comes after all.
export const lost = (query, why) => ({ ...ended(query, "failed", `lost: ${why}`), isLost: true });

export function taken(query, event) {
  const take = takers[event.kind];
  if (!take) return query;
  const known = query.isLost ? { ...replayed(query.events), id: query.id } : query;
  const next = take({ ...known, model: event.model }, event);
  return { ...next, request: event.request_id, at: event.at_s, events: [...next.events, event] };
}

// What is known of one query, from its events. `taken(query, event)` gives the next state and changes nothing.

export const fresh = (id) => ({
  id, state: "waits", steps: [], calls: [], cost: 0, routerCost: 0, at: 0, text: "", answer: "", model: "",
  since: Date.now(),
});

const stepsOf = (plan) => plan.subtasks.map((step) => ({
  id: step.id, text: step.text, needs: step.depends_on, state: "waits", model: "", answer: "", cost: 0, asked: [], calls: 0, tokens: 0,
}));

const withStep = (query, id, change) => ({
  ...query, steps: query.steps.map((step) => (step.id === id ? { ...step, ...change(step) } : step)),
});

const takers = {
  // A query that is told again, after a new connection, begins anew.
  started: (query, event) => ({
    ...fresh(query.id), state: "works", text: event.query || "", isPrivate: event.query === undefined, model: event.model,
    client: event.client, since: event.began_s ? 1000 * event.began_s : query.since,
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
  answered: (query, event) => ({ ...query, state: "done", answer: event.answer || query.answer, saved: event.saved_usd }),
  failed: (query, event) => ({
    ...query, state: "failed", error: event.error || "failed",
    steps: query.steps.map((step) => (step.state === "works" ? { ...step, state: "failed" } : step)),
  }),
};

export function taken(query, event) {
  const take = takers[event.kind];
  return take ? { ...take({ ...query, model: event.model }, event), at: event.at_s } : query;
}

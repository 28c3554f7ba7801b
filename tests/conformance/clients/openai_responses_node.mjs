// openai-node, Responses.
import {
  ANSWER, BASE_URL, DATA_URL, KEY, PLACE, PLACE_SCHEMA, REFUSED, SEEN, SPENT_KEY, THOUGHT, TOLD, WEATHER_SCHEMA,
  callBoth, deepEqual, fails, load, longText, ok, rejects, run, same, weather,
} from "./cells.mjs";

const { default: OpenAI } = await load("openai");
const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY });
const ask = (request, by = client) => by.responses.create(request);
const askStreamed = (request) => client.responses.stream(request).finalResponse();
const tools = [{ type: "function", name: "weather", strict: true, parameters: WEATHER_SCHEMA }];

function results(reply) {
  const calls = reply.output.filter((item) => item.type === "function_call");
  deepEqual(calls.map((call) => call.arguments), ['{"city": "Oslo"}', '{"city": "Rome"}']);
  return calls.map(({ call_id, arguments: text }) => ({
    type: "function_call_output",
    call_id,
    output: weather(JSON.parse(text)),
  }));
}

// Both turns send the whole conversation, and nothing is stored.
async function loop(by, request) {
  const input = [{ role: "user", content: request.input }];
  const first = await by({ ...request, input, tools, store: false });
  const said = first.output.map(({ parsed_arguments, ...item }) => item);
  const again = await by({ ...request, input: [...input, ...said, ...results(first)], tools, store: false });
  same(again.output_text, TOLD);
  return first;
}

await run({
  async plain(model, input) {
    const reply = await ask({ model, input, instructions: "Be brief.", max_output_tokens: 100 });
    deepEqual([reply.output_text, reply.status], [ANSWER, "completed"]);
  },
  async streamed(model, input) {
    let [text, last] = [""];
    for await (last of await ask({ model, input, stream: true }))
      if (last.type === "response.output_text.delta") text += last.delta;
    deepEqual([text, last.type], [ANSWER, "response.completed"]);
    ok(last.response.usage.output_tokens > 0);
  },
  async tools(model, note) {
    const first = await ask({ model, input: callBoth(note), tools });
    const again = await ask({ model, input: results(first), tools, previous_response_id: first.id });
    same(again.output_text, TOLD);
  },
  tools_streamed: (model, note) => loop(askStreamed, { model, input: callBoth(note) }),
  async image(model, note) {
    const content = [{ type: "input_text", text: note }, { type: "input_image", image_url: DATA_URL, detail: "auto" }];
    same((await ask({ model, input: [{ role: "user", content }] })).output_text, SEEN);
  },
  async structured(model, input) {
    const text = { format: { type: "json_schema", name: "place", strict: true, schema: PLACE_SCHEMA } };
    deepEqual(JSON.parse((await ask({ model, input, text })).output_text), PLACE);
  },
  async history(model, note) {
    const first = await ask({ model, input: note, instructions: "Be brief." });
    const wanted = { input: "REPEAT", instructions: "Be long.", previous_response_id: first.id };
    const expected = `system: Be long.\nuser: ${note}\nassistant: ${ANSWER}\nuser: REPEAT`;
    same((await ask({ model, ...wanted })).output_text, expected);
    same((await client.responses.retrieve(first.id)).output_text, ANSWER);
    await client.responses.delete(first.id);
    await rejects(client.responses.retrieve(first.id), (e) => e instanceof OpenAI.NotFoundError);
  },
  async usage(model, note) {
    const request = { model, instructions: longText(note), input: note, prompt_cache_key: note };
    const [first, second] = [(await ask(request)).usage, (await ask(request)).usage];
    same(first.total_tokens, first.input_tokens + first.output_tokens);
    ok(second.input_tokens_details.cached_tokens > 1024);
  },
  async reasoning(model, note) {
    const reasoning = { effort: "low", summary: "auto" };
    const request = { model, input: callBoth(note), reasoning, include: ["reasoning.encrypted_content"] };
    const first = await loop(ask, request);
    same(first.output[0].summary[0].text, THOUGHT);
    ok(first.usage.output_tokens_details.reasoning_tokens > 0);
  },
  async errors(model, note) {
    same((await ask({ model, input: fails(429, 3, note) })).output_text, ANSWER);
    const refused = ask({ model, input: fails(400, 9, `${note}-400`) });
    await rejects(refused, (e) => e instanceof OpenAI.BadRequestError && e.message.includes(REFUSED));
    await rejects(ask({ model: "nope", input: note }), (e) => e.code === "model_not_found");
    const as = (apiKey) => ask({ model, input: note }, new OpenAI({ baseURL: BASE_URL, apiKey }));
    await rejects(as("wrong"), (e) => e instanceof OpenAI.AuthenticationError);
    await rejects(as(SPENT_KEY), (e) => e.code === "insufficient_quota");
  },
  async models(model) {
    const ids = [];
    for await (const each of client.models.list()) ids.push(each.id);
    ok(ids.includes(model));
  },
});

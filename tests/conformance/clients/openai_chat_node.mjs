// openai-node, chat completions.
import {
  ANSWER, BASE_URL, DATA_URL, KEY, PLACE, PLACE_SCHEMA, REFUSED, SEEN, SPENT_KEY, THOUGHT, TOLD, WEATHER_SCHEMA,
  callBoth, deepEqual, fails, load, longText, ok, rejects, run, same, weather,
} from "./cells.mjs";

const { default: OpenAI } = await load("openai");
const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY });
const user = (content) => [{ role: "user", content }];
const ask = async (request, by = client) => (await by.chat.completions.create(request)).choices[0].message;
const askStreamed = async (request) =>
  (await client.chat.completions.stream(request).finalChatCompletion()).choices[0].message;
const tools = [{ type: "function", function: { name: "weather", parameters: WEATHER_SCHEMA } }];

async function loop(by, request) {
  const first = await by({ ...request, tools });
  deepEqual(first.tool_calls.map((call) => call.function.arguments), ['{"city": "Oslo"}', '{"city": "Rome"}']);
  const results = first.tool_calls.map((call) => ({
    role: "tool",
    tool_call_id: call.id,
    content: weather(JSON.parse(call.function.arguments)),
  }));
  same((await by({ ...request, tools, messages: [...request.messages, first, ...results] })).content, TOLD);
  return first;
}

await run({
  async plain(model, note) {
    const reply = await client.chat.completions.create({ model, messages: user(note), max_tokens: 100 });
    deepEqual([reply.choices[0].message.content, reply.choices[0].finish_reason], [ANSWER, "stop"]);
  },
  async streamed(model, note) {
    const options = { stream: true, stream_options: { include_usage: true } };
    let [text, last] = [""];
    for await (last of await client.chat.completions.create({ model, messages: user(note), ...options }))
      text += last.choices[0]?.delta?.content ?? "";
    same(text, ANSWER);
    ok(last.usage.completion_tokens > 0);
  },
  tools: (model, note) => loop(ask, { model, messages: user(callBoth(note)) }),
  tools_streamed: (model, note) => loop(askStreamed, { model, messages: user(callBoth(note)) }),
  async image(model, note) {
    const parts = [{ type: "text", text: note }, { type: "image_url", image_url: { url: DATA_URL } }];
    same((await ask({ model, messages: user(parts) })).content, SEEN);
  },
  async structured(model, note) {
    const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: PLACE_SCHEMA } };
    deepEqual(JSON.parse((await ask({ model, messages: user(note), response_format })).content), PLACE);
  },
  async history(model, note) {
    const said = [["developer", "Be brief."], ["user", note], ["assistant", "Yes."], ["user", "REPEAT"]];
    const messages = said.map(([role, content]) => ({ role, content }));
    const expected = `system: Be brief.\nuser: ${note}\nassistant: Yes.\nuser: REPEAT`;
    same((await ask({ model, messages })).content, expected);
  },
  async usage(model, note) {
    const messages = [{ role: "system", content: longText(note) }, ...user(note)];
    const once = async () => (await client.chat.completions.create({ model, messages, prompt_cache_key: note })).usage;
    const [first, second] = [await once(), await once()];
    same(first.total_tokens, first.prompt_tokens + first.completion_tokens);
    ok(second.prompt_tokens_details.cached_tokens > 1024);
  },
  async reasoning(model, note) {
    const first = await loop(ask, { model, messages: user(callBoth(note)), reasoning_effort: "low" });
    same(first.reasoning_content, THOUGHT);
  },
  async errors(model, note) {
    same((await ask({ model, messages: user(fails(429, 3, note)) })).content, ANSWER);
    const refused = ask({ model, messages: user(fails(400, 9, `${note}-400`)) });
    await rejects(refused, (e) => e instanceof OpenAI.BadRequestError && e.message.includes(REFUSED));
    const unknown = ask({ model: "nope", messages: user(note) });
    await rejects(unknown, (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
    const as = (apiKey) => ask({ model, messages: user(note) }, new OpenAI({ baseURL: BASE_URL, apiKey }));
    await rejects(as("wrong"), (e) => e instanceof OpenAI.AuthenticationError);
    await rejects(as(SPENT_KEY), (e) => e.code === "insufficient_quota");
  },
  async models(model) {
    const ids = [];
    for await (const each of client.models.list()) ids.push(each.id);
    ok(ids.includes(model));
    same((await client.models.retrieve(model)).id, model);
  },
});

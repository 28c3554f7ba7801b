// Vercel's AI SDK: `@ai-sdk/openai` as it is by default (Responses), or `@ai-sdk/openai-compatible` (chat).
import {
  ANSWER, BASE_URL, KEY, PLACE, PLACE_SCHEMA, PNG, REFUSED, SEEN, THOUGHT, TOLD, WEATHER_SCHEMA,
  callBoth, deepEqual, fails, load, longText, ok, rejects, run, same, weather,
} from "./cells.mjs";

const { generateText, jsonSchema, Output, stepCountIs, streamText, tool } = await load("ai");
const isResponses = process.env.R2_CLIENT.endsWith("openai");
const options = { baseURL: BASE_URL, apiKey: KEY };
const provider = isResponses
  ? (await load("@ai-sdk/openai")).createOpenAI(options)
  : (await load("@ai-sdk/openai-compatible")).createOpenAICompatible({
      name: "r2",
      includeUsage: true,
      supportsStructuredOutputs: true,
      ...options,
    });

const ask = (model, request) => generateText({ model: provider(model), ...request });
const looping = (note) => ({
  prompt: callBoth(note),
  stopWhen: stepCountIs(3),
  tools: { weather: tool({ inputSchema: jsonSchema(WEATHER_SCHEMA), execute: weather }) },
});

await run({
  async plain(model, prompt) {
    const { text, finishReason } = await ask(model, { prompt, maxOutputTokens: 100 });
    deepEqual([text, finishReason], [ANSWER, "stop"]);
  },
  async streamed(model, prompt) {
    const stream = streamText({ model: provider(model), prompt });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    same(text, ANSWER);
    ok((await stream.usage).outputTokens > 0);
  },
  async tools(model, note) {
    const { text, steps } = await ask(model, looping(note));
    deepEqual([text, steps.map((step) => step.toolCalls.length)], [TOLD, [2, 0]]);
  },
  async tools_streamed(model, note) {
    const stream = streamText({ model: provider(model), ...looping(note) });
    same(await stream.text, TOLD);
    same((await stream.steps).length, 2);
  },
  async image(model, note) {
    const content = [
      { type: "text", text: note },
      { type: "image", image: Buffer.from(PNG, "base64"), mediaType: "image/png" },
    ];
    same((await ask(model, { messages: [{ role: "user", content }] })).text, SEEN);
  },
  async structured(model, prompt) {
    const output = Output.object({ schema: jsonSchema(PLACE_SCHEMA) });
    deepEqual((await ask(model, { prompt, output })).output, PLACE);
  },
  async history(model, note) {
    const said = [["user", note], ["assistant", "Yes."], ["user", "REPEAT"]];
    const messages = said.map(([role, content]) => ({ role, content }));
    const { text } = await ask(model, { system: "Be brief.", messages });
    same(text, `system: Be brief.\nuser: ${note}\nassistant: Yes.\nuser: REPEAT`);
  },
  async usage(model, note) {
    const providerOptions = isResponses ? { openai: { promptCacheKey: note } } : { r2: { prompt_cache_key: note } };
    const once = async () => (await ask(model, { system: longText(note), prompt: note, providerOptions })).usage;
    const [first, second] = [await once(), await once()];
    same(first.totalTokens, first.inputTokens + first.outputTokens);
    ok(second.inputTokenDetails.cacheReadTokens > 1024, JSON.stringify(second));
  },
  async reasoning(model, note) {
    const effort = isResponses
      ? { openai: { reasoningEffort: "low", reasoningSummary: "auto", store: false, forceReasoning: true } }
      : { r2: { reasoningEffort: "low" } };
    const { text, steps, totalUsage } = await ask(model, { ...looping(note), providerOptions: effort });
    deepEqual([text, steps[0].reasoningText], [TOLD, THOUGHT]);
    ok(totalUsage.outputTokenDetails.reasoningTokens > 0, JSON.stringify(totalUsage));
  },
  async errors(model, note) {
    same((await ask(model, { prompt: fails(429, 3, note) })).text, ANSWER);
    const refused = ask(model, { prompt: fails(400, 9, `${note}-400`) });
    await rejects(refused, (e) => e.statusCode === 400 && e.message.includes(REFUSED));
    await rejects(ask("nope", { prompt: note }), (e) => e.statusCode === 404);
  },
  models: "the client has no function that lists models",
});

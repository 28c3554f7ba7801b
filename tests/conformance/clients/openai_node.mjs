// openai-node.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(`${process.env.R2_NODE_HOME}/`).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(found).href);
const { R2_BASE_URL: baseURL, R2_KEY: apiKey, R2_SPENT_KEY: spentKey } = process.env;
const ANSWER = "The whole answer of six words.";
const messages = [{ role: "user", content: "Which is it?" }];
const client = new OpenAI({ baseURL, apiKey });

const claims = {
  async chat() {
    const reply = await client.chat.completions.create({ model: "r2", messages, temperature: 0, max_tokens: 100 });
    assert.equal(reply.choices[0].message.content, ANSWER);
    assert.equal(reply.choices[0].finish_reason, "stop");
  },
  async stream() {
    const stream = await client.chat.completions.create({ model: "r2", messages, stream: true, stream_options: { include_usage: true } });
    let text = "", last;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      last = chunk;
    }
    assert.equal(text, ANSWER);
    assert.ok(last.usage.completion_tokens > 0);
    const helper = client.chat.completions.stream({ model: "r2", messages });
    assert.equal((await helper.finalChatCompletion()).choices[0].message.content, ANSWER);
  },
  async usage() {
    const { usage } = await client.chat.completions.create({ model: "r2", messages });
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("r2") && ids.includes("small"));
    assert.equal((await client.models.retrieve("small")).id, "small");
  },
  async error() {
    const ask = (options, with_ = client) => with_.chat.completions.create({ model: "r2", messages, ...options });
    await assert.rejects(ask({ model: "nope" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
    await assert.rejects(ask({ n: 2 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "n" && Boolean(e.requestID));
    await assert.rejects(ask({}, new OpenAI({ baseURL, apiKey: "wrong" })), (e) => e instanceof OpenAI.AuthenticationError);
    await assert.rejects(ask({}, new OpenAI({ baseURL, apiKey: spentKey })), (e) => e.code === "insufficient_quota");
  },
};

for (const [name, claim] of Object.entries(claims)) {
  const outcome = await claim().then(() => ({ outcome: "ok" }), (e) => ({ outcome: "failed", detail: String(e).slice(0, 300) }));
  console.log("R2-CHECK " + JSON.stringify({ check: name, ...outcome }));
}

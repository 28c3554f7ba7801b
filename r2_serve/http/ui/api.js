// The endpoint as the page sees it: one key, streams of server-sent events, money as text.

const KEY = "r2-key";
const BASE = new URL("../v1/", location.href.endsWith("/") ? location.href : location.href + "/");

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const headers = () => (key.get() ? { authorization: `Bearer ${key.get()}` } : {});

async function checked(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* the body is not ours */ }
  throw new Refused(response.status, message);
}

// What a reader is told of a failure; nothing if the reader stopped it.
export function told(failure) {
  if (failure.name === "AbortError") return null;
  return failure instanceof Refused ? failure.message : `The connection is lost: ${failure.message}. Try again.`;
}

// The samples of /metrics as {name, labels, value}.
export async function metrics(signal) {
  const response = await checked(await fetch(new URL("../metrics", BASE), { headers: headers(), signal }));
  const sample = /^([a-z0-9_]+)(?:{(.*)})? (\S+)$/gm, label = /(\w+)="((?:[^"\\]|\\.)*)"/g;
  return [...(await response.text()).matchAll(sample)].map(([, name, labels = "", value]) => ({
    name, labels: Object.fromEntries([...labels.matchAll(label)].map(([, key, text]) => [key, text])), value: Number(value),
  }));
}

export async function getJson(path, signal) {
  return (await checked(await fetch(new URL(path, BASE), { headers: headers(), signal }))).json();
}

// Each event of a stream as {name, data}; `body` makes it a POST. It ends with the stream or by `signal`.
export async function* events(path, { body, signal } = {}) {
  const post = body && { method: "POST", body: JSON.stringify(body) };
  const json = body && { "content-type": "application/json" };
  const response = await fetch(new URL(path, BASE), { headers: { ...headers(), ...json }, signal, ...post });
  const reader = (await checked(response)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2));
      const data = field("data").join("\n");
      if (data) yield { name: field("event")[0], data };
    }
  }
}

export function usd(amount) {
  if (amount === undefined || amount === null) return "";
  const value = Number(amount);
  if (value < 0) return `-${usd(-value)}`;
  if (value === 0) return "$0";
  if (value >= 0.01) return `$${value.toFixed(4)}`;
  if (value >= 0.001) return `${(value * 1e3).toPrecision(3)} m$`;
  return `${(value * 1e6).toPrecision(3)} µ$`;
}

export const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);

// The features that each client shows with each model, and one line of JSON per cell on standard output.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const env = process.env;
export const { R2_ROOT: ROOT, R2_KEY: KEY, R2_SPENT_KEY: SPENT_KEY } = env;
export const BASE_URL = `${ROOT}/v1`;
export const ANSWER = "The whole answer of six words.";
export const THOUGHT = "The user wants an answer, so I weigh it.";
export const TOLD = "The tools say: sun in Oslo; sun in Rome";
export const REFUSED = "refused at try 1";
export const WEATHER_SCHEMA = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
export const PLACE_SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, degrees: { type: "integer" } },
  required: ["city", "degrees"],
  additionalProperties: false,
};
export const PLACE = { city: "Oslo", degrees: 4 };
// a picture of one red point
export const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
export const DATA_URL = `data:image/png;base64,${PNG}`;
export const SEEN = `I see image/png of ${Buffer.from(PNG, "base64").length} bytes`;

// Loads a package of the folder in which the clients are installed.
const home = createRequire(`${env.R2_NODE_HOME}/`);
export const load = (name) => import(pathToFileURL(home.resolve(name)).href);

export const weather = ({ city }) => `sun in ${city}`;
export const callBoth = (note) =>
  [note, ...["Oslo", "Rome"].map((city) => `CALL weather {"city": "${city}"}`)].join("\n");
export const fails = (status, times, note) => `FAIL ${status} x${times} #${note}`;
export const longText = (note) => `${note} ` + "Answer in the words of a careful clerk. ".repeat(200);
export const { equal: same, deepEqual, ok, rejects } = assert;

// Runs every feature with every model. A text in place of a function says why the feature is impossible.
export async function run(features) {
  const wanted = env.R2_FEATURES ? env.R2_FEATURES.split(",") : Object.keys(features);
  for (const [feature, claim] of Object.entries(features).filter(([name]) => wanted.includes(name))) {
    for (const target of env.R2_TARGETS.split(",")) {
      const started = Date.now();
      let [outcome, reason] = ["works", ""];
      if (typeof claim === "string") [outcome, reason] = ["impossible", claim];
      else {
        try {
          await claim(target, `${env.R2_CLIENT}-${target}-${feature}`);
        } catch (e) {
          console.log(e);
          [outcome, reason] = ["failed", String(e).slice(0, 500)];
        }
      }
      const took_s = (Date.now() - started) / 1000;
      console.log("R2-CELL " + JSON.stringify({ target, feature, outcome, reason, took_s }));
    }
  }
}

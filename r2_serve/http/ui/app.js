// The page: tabs, the key, the theme.

import { html, render, useCallback, useEffect, useState } from "./vendor/preact-htm.js";
import { getJson, key } from "./api.js";
import { Ask, Compare } from "./ask.js";
import { Traffic, useTraffic } from "./traffic.js";

const TABS = ["ask", "traffic", "compare"];
const TITLES = { ask: "Ask", traffic: "Traffic", compare: "Compare" };
const THEMES = ["", "light", "dark"];
const THEME_TITLES = { "": "system colours", light: "light", dark: "dark" };

function useHash() {
  const now = () => (TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "ask");
  const [tab, setTab] = useState(now());
  useEffect(() => {
    const changed = () => setTab(now());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return tab;
}

function KeyForm({ message, onKey }) {
  const [value, setValue] = useState("");
  return html`<form class="card" onSubmit=${(e) => { e.preventDefault(); key.set(value.trim()); onKey(); }}>
    <p role="alert" class=${key.get() ? "bad" : ""}>${message}</p>
    <div class="row"><label>Key of this endpoint<input type="password" autocomplete="off" value=${value} onInput=${(e) => setValue(e.target.value)} /></label>
      <button class="main">Use it</button></div>
    <p class="quiet">It stays in this tab and is sent to this server alone.</p>
  </form>`;
}

function Tabs({ models }) {
  const tab = useHash(), traffic = useTraffic(tab === "traffic");
  const go = (name) => { location.hash = name; document.getElementById(`tab-${name}`).focus(); };
  const keys = { ArrowRight: 1, ArrowLeft: -1 };
  const move = (e) => {
    const to = { Home: 0, End: TABS.length - 1 }[e.key] ?? (e.key in keys ? TABS.indexOf(tab) + keys[e.key] + TABS.length : -1);
    if (to >= 0) { e.preventDefault(); go(TABS[to % TABS.length]); }
  };
  const panel = (name, content) => html`<div id=${`panel-${name}`} role="tabpanel" aria-labelledby=${`tab-${name}`} hidden=${tab !== name}>${content}</div>`;
  return html`<main>
    <div role="tablist" aria-label="Parts of the page" onKeyDown=${move}>${TABS.map((name) => html`<button key=${name} role="tab" id=${`tab-${name}`}
      aria-selected=${String(tab === name)} aria-controls=${`panel-${name}`} tabindex=${tab === name ? 0 : -1} onClick=${() => go(name)}>${TITLES[name]}</button>`)}</div>
    ${panel("ask", html`<${Ask} models=${models} />`)}
    ${panel("traffic", tab === "traffic" && html`<${Traffic} traffic=${traffic} />`)}
    ${panel("compare", html`<${Compare} models=${models} />`)}
    </main>`;
}

function App() {
  const [models, setModels] = useState(null);
  const [error, setError] = useState(null);
  const [theme, setTheme] = useState(localStorage.getItem("r2-theme") || "");
  const load = useCallback(async () => {
    setError(null);
    try {
      setModels((await getJson("models")).data.filter((model) => model.r2.capabilities.includes("chat")));
    } catch (failure) {
      setError(failure);
    }
  }, []);
  useEffect(() => { load(); }, []);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("r2-theme", theme);
  }, [theme]);
  const isKeyless = error?.status === 401;
  const forget = () => { key.set(""); setModels(null); load(); };
  return html`<header><h1>R2</h1>
      ${key.get() && !isKeyless && html`<button type="button" onClick=${forget}>Change key</button>`}
      <select aria-label="Colours" value=${theme} onChange=${(e) => setTheme(e.target.value)}>${THEMES.map((name) => html`<option value=${name}>${THEME_TITLES[name]}</option>`)}</select></header>
    ${isKeyless && html`<main><${KeyForm} message=${key.get() ? "This endpoint does not know this key." : "This endpoint asks for a key."} onKey=${load} /></main>`}
    ${error && !isKeyless && html`<main class="card"><p class="bad" role="alert">The router does not answer: ${error.message}</p><button onClick=${load}>Try again</button></main>`}
    ${!error && !models && html`<main><p class="quiet" role="status">Loading the models</p></main>`}
    ${!error && models?.length === 0 && html`<main><p class="quiet">This key may ask no model.</p></main>`}
    ${!error && models?.length > 0 && html`<${Tabs} models=${models} />`}`;
}

document.getElementById("app").replaceChildren();
render(html`<${App} />`, document.getElementById("app"));

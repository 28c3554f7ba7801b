// The page: tabs, the key, the theme.

import { html, render, useCallback, useEffect, useState } from "./vendor/preact-htm.js";
import { getJson, key } from "./api.js";
import { Ask, Compare } from "./ask.js";
import { Traffic, useTraffic } from "./traffic.js";

const TABS = ["ask", "traffic", "compare"];
const TITLES = { ask: "Ask", traffic: "Traffic", compare: "Compare" };
const THEMES = ["", "light", "dark"];

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
    <p role="alert">${message}</p>
    <div class="row"><label>Key of this endpoint<input type="password" autocomplete="off" value=${value} onInput=${(e) => setValue(e.target.value)} /></label>
      <button class="main">Use it</button></div>
    <p class="quiet">It stays in this tab and is sent to this server alone.</p>
  </form>`;
}

function Tabs({ models }) {
  const tab = useHash(), traffic = useTraffic();
  return html`<div>
    <nav role="tablist" aria-label="Parts of the page">${TABS.map((name) => html`<button key=${name} role="tab" id=${`tab-${name}`}
      aria-selected=${String(tab === name)} aria-controls="panel" onClick=${() => { location.hash = name; }}>${TITLES[name]}</button>`)}</nav>
    <main id="panel" role="tabpanel" aria-labelledby=${`tab-${tab}`}>
      <div hidden=${tab !== "ask"}><${Ask} models=${models} /></div>
      ${tab === "traffic" && html`<${Traffic} traffic=${traffic} />`}
      ${tab === "compare" && html`<${Compare} models=${models} />`}
    </main></div>`;
}

function App() {
  const [models, setModels] = useState(null);
  const [error, setError] = useState(null);
  const [theme, setTheme] = useState(localStorage.getItem("r2-theme") || "");
  const load = useCallback(async () => {
    setError(null);
    try {
      setModels((await getJson("models")).data);
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
  return html`<header><h1>R2</h1>
      <label>theme<select value=${theme} onChange=${(e) => setTheme(e.target.value)}>${THEMES.map((name) => html`<option value=${name}>${name || "as the system"}</option>`)}</select></label></header>
    ${isKeyless && html`<${KeyForm} message=${error.message} onKey=${load} />`}
    ${error && !isKeyless && html`<div class="card"><p class="bad" role="alert">The router does not answer: ${error.message}</p><button onClick=${load}>Try again</button></div>`}
    ${!error && !models && html`<p class="quiet" role="status">Loading the models</p>`}
    ${!error && models && html`<${Tabs} models=${models} />`}`;
}

document.getElementById("app").replaceChildren();
render(html`<${App} />`, document.getElementById("app"));

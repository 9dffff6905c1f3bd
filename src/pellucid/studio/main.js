/** The frame: views by the part of the address after #, the theme, messages. */
import { html, render, useEffect, useState } from "./vendor/preact-htm.js";
import { active, start, useStore } from "./state.js";
import { Make } from "./make.js";

// The other views are loaded when they are opened first.
const VIEWS = {
  make: ["Make", () => Make],
  change: ["Change", async () => (await import("./change.js")).Change],
  look: ["Look", async () => (await import("./look.js")).Look],
  learn: ["Learn", async () => (await import("./learn.js")).Learn],
  compare: ["Compare", async () => (await import("./compare.js")).Compare],
  history: ["History", async () => (await import("./history.js")).History],
};

/** "#look/42?b=1" -> ["look", "42"] */
const place = () => location.hash.replace(/^#\/?/, "").split("?")[0].split("/");
export const go = (...parts) => {
  location.hash = parts.join("/");
};

function Theme() {
  const [theme, setTheme] = useState(localStorage.theme ?? "auto");
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.theme = theme;
  }, [theme]);
  const next = { auto: "light", light: "dark", dark: "auto" };
  return html`<button class="plain" onClick=${() => setTheme(next[theme])} title="Theme: automatic, light, dark">${{ auto: "◐", light: "☀", dark: "☾" }[theme]}<span class="hidden">Theme: ${theme}</span></button>`;
}

function App() {
  const { jobs, online, toasts } = useStore();
  const [[name, ...rest], setPlace] = useState(place());
  const [View, setView] = useState(() => Make);
  useEffect(() => {
    const moved = () => setPlace(place());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const current = VIEWS[name] ? name : "make";
  useEffect(() => {
    let latest = true;
    document.title = `${VIEWS[current][0]} – Pellucid studio`;
    Promise.resolve(VIEWS[current][1]()).then((view) => latest && setView(() => view));
    return () => {
      latest = false;
    };
  }, [current]);
  const waiting = [...jobs.values()].filter(active).length;
  return html`<a class="skip" href="#make" onClick=${(e) => {
    e.preventDefault();
    document.querySelector("main").focus();
  }}>Skip to the content</a>
    <header class="top"><a class="brand" href="#make"><img src="icon.svg" alt="" />Pellucid</a>
      <nav class="tabs" aria-label="Views">${Object.entries(VIEWS).map(([key, [title]]) => html`<a href=${`#${key}`} aria-current=${key === current ? "page" : null}>${title}</a>`)}</nav>
      <div class="end"><span class="soft small" role="status">${!online ? "No connection; trying again" : waiting ? `${waiting} ${waiting === 1 ? "job" : "jobs"}` : ""}</span><${Theme} /></div></header>
    <main tabindex="-1"><${View} arguments=${rest} /></main>
    <div class="toasts" role="status">${toasts.map((t) => html`<div key=${t.id} class=${t.bad ? "bad" : ""}>${t.text}</div>`)}</div>`;
}

render(html`<${App} />`, document.getElementById("app"));
start();

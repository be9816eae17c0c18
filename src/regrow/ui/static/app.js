// The frame of the page and what it shows, by the address behind the `#`.
import { html, here, render, to, useEffect, useRef, useState } from "./lib.js";
import { Runs } from "./runs.js";
import { Run } from "./run.js";
import { Compare } from "./compare.js";
import { New } from "./form.js";

const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

const Theme = () => {
  const [dark, setDark] = useState(isDark());
  useEffect(() => {
    const look = () => setDark(isDark());
    systemDark.addEventListener("change", look);
    return () => systemDark.removeEventListener("change", look);
  }, []);
  const toggle = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    setDark(isDark());
    try {
      localStorage.setItem("regrow-theme", root.dataset.theme);
    } catch (refused) {
      // Kept for this page only.
    }
  };
  return html`<button type="button" id="theme" onClick=${toggle} aria-label=${dark ? "Switch to light colours" : "Switch to dark colours"}>${dark ? "Light" : "Dark"}</button>`;
};

const PAGES = {
  "": () => [Runs, {}],
  run: (params) => [Run, { name: params.get("name"), tab: params.get("tab") || "progress" }],
  compare: (params) => [Compare, { names: params.getAll("run") }],
  new: (params) => [New, { like: params.get("like") }],
};

const App = () => {
  const [at, setAt] = useState(here());
  const main = useRef(null);
  useEffect(() => {
    const moved = () => setAt((before) => {
      const now = here();
      // A new page is read from its beginning; a tab of the same run leaves the focus where it is.
      if (now.path !== before.path || now.params.get("name") !== before.params.get("name")) main.current.focus();
      return now;
    });
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const [Page, props] = (PAGES[at.path] || PAGES[""])(at.params);
  const link = (path, text) => html`<a href=${to(path)} aria-current=${at.path === path ? "page" : undefined}>${text}</a>`;
  return html`<header class="top">
      <a class="brand" href=${to("")}><svg viewBox="0 0 24 24" fill="none" stroke="var(--a4)" stroke-width="2" stroke-linecap="round" aria-hidden="true"><path d="M12 21v-9M12 14c0-5-3-8-8-8 0 5 3 8 8 8zM12 11c0-4 2.500-7 8-7 0 5-3 7-8 7z" /></svg>Regrow</a>
      <nav class="sites" aria-label="Pages">${link("", "Runs")}${link("new", "New run")}</nav>
      <${Theme} />
    </header>
    <main id="main" class="live" tabindex="-1" ref=${main}><${Page} key=${`${at.path}/${props.name || props.like || (props.names || []).join()}`} ...${props} /></main>`;
};

render(html`<${App} />`, document.getElementById("app"));

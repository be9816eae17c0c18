// What all parts of the page share. Text from runs goes into the page as text, through the templates, never as markup.
import { html, render, useCallback, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";

export { html, render, useCallback, useEffect, useMemo, useRef, useState };

/** Asks the server; an error carries what the server said. */
const ask = async (path, options) => {
  let reply;
  try {
    reply = await fetch(`api/${path}`, options);
  } catch (broken) {
    throw new Error("The server does not answer. Is `regrow ui` still running?");
  }
  const type = reply.headers.get("content-type") || "";
  const found = type.includes("json") ? await reply.json() : { message: (await reply.text()).trim() };
  if (reply.ok) return found;
  const said = [found.where && `${found.where}:`, found.message, found.hint && `(${found.hint})`].filter(Boolean).join(" ");
  throw new Error(said || "The server did not understand the question.");
};
export const get = (path, params) => ask(params ? `${path}?${new URLSearchParams(params)}` : path);
export const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Server-sent events as long as the component is there. `on` maps kinds to functions and may change. */
export const useEvents = (run, on) => {
  const handlers = useRef(on);
  handlers.current = on;
  const [connected, setConnected] = useState(true);
  useEffect(() => {
    if (run === undefined) return undefined;
    let source, timer;
    const open = () => {
      source = new EventSource(run === null ? "api/events" : `api/events?${new URLSearchParams({ run })}`);
      source.onopen = () => setConnected(true);
      source.onerror = () => {
        setConnected(false);
        if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, 3000);
      };
      for (const kind of ["runs", "state", "progress", "notes", "log", "monitor", "corpus", "changed", "problem"])
        source.addEventListener(kind, (event) => handlers.current[kind]?.(JSON.parse(event.data)));
    };
    open();
    return () => {
      clearTimeout(timer);
      source.close();
    };
  }, [run]);
  return connected;
};

/** Loads something, again whenever `keys` change: `{data, error}`. A later answer wins over an earlier one. */
export const useLoaded = (load, keys) => {
  const [found, setFound] = useState({ data: null, error: null });
  useEffect(() => {
    let stale = false;
    load().then(
      (data) => stale || setFound({ data, error: null }),
      (error) => stale || setFound((before) => ({ data: before.data, error: error.message })),
    );
    return () => {
      stale = true;
    };
  }, keys);
  return found;
};

/** A value that has not changed for a moment. */
export const useSettled = (value, ms = 200) => {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [value, ms]);
  return settled;
};

export const count = (n) => Math.round(n).toLocaleString("en");
export const clock = (seconds) => {
  if (!Number.isFinite(seconds) || seconds < 0) return "–";
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
};
export const short = (x) => (Math.abs(x) >= 100 ? count(x) : Number(x.toPrecision(3)).toString());

/** Addresses inside the page: `#/run?name=demo&tab=items`. */
export const to = (path, params) => `#/${path}${params ? `?${new URLSearchParams(params)}` : ""}`;
export const here = () => {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path, params: new URLSearchParams(query) };
};

export const Trouble = ({ text }) => (text ? html`<p class="panel trouble" role="alert">${text}</p>` : null);
export const Said = ({ text, tag = "span", css = "" }) => html`<${tag} class=${`said ${css}`} dir="auto">${text}</${tag}>`;

const WORDS = {
  running: ["mid", "●", "running"], starting: ["mid", "○", "starting"], done: ["good", "✓", "done"],
  interrupted: ["bad", "!", "interrupted"], stopped: ["", "■", "stopped"], failed: ["bad", "✕", "failed"],
  damaged: ["bad", "✕", "damaged"], empty: ["", "–", "nothing done"], waiting: ["", "·", "waiting"],
};
export const State = ({ state }) => {
  const [tone, sign, word] = WORDS[state] || ["", "–", state];
  return html`<span class=${`badge state ${tone}`}><span aria-hidden="true">${sign}</span> ${word}</span>`;
};

/** Help texts of the recipe: what stands in backticks is code. */
export const Prose = ({ text }) => text.split(/`+/).map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));

const SHAPES = [
  "M8 2.4a5.6 5.6 0 1 0 0 11.2a5.6 5.6 0 1 0 0-11.2", "M3 3h10v10H3z", "M8 .8L15.200 8L8 15.200L.8 8z",
  "M8 1.300L14.200 13H1.800z", "M8 14.700L1.800 3h12.400z", "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z",
];
/** An arm's name with its colour and shape, as in the report. */
export const Arm = ({ name, style = 0 }) => html`<span class=${`arm a${style % 6}`}>
  <svg class="key" viewBox="0 0 16 16" width="14" height="14" aria-hidden="true"><path class="mark" d=${SHAPES[style % 6]} /></svg><span>${name}</span></span>`;

/** The arms of a run by key: their names and styles. */
export const armsOf = (detail) => Object.fromEntries((detail.arms || []).map((a) => [a.arm, a]));

/** A table that can be scrolled sideways, by keyboard too. */
export const Table = ({ label, css = "", head, children }) => html`<div class="scroll" tabindex="0" role="region" aria-label=${label}>
  <table class=${css}><thead><tr>${head.map((h) => html`<th scope="col">${h}</th>`)}</tr></thead><tbody>${children}</tbody></table></div>`;

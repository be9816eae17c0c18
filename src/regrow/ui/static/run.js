// One run: what it does right now, its curves, its results, its items, its corpus, its recipe.
import { Arm, Said, State, Table, Trouble, armsOf, clock, count, get, html, post, short, to, useEffect, useEvents, useMemo, useRef, useState } from "./lib.js";
import { Items } from "./items.js";
import { Training } from "./training.js";
import { Tree, makeNews } from "./tree.js";

const TABS = { progress: "Progress", training: "Training", results: "Results", items: "Items", corpus: "Corpus", recipe: "Recipe and cost" };
const KNOWN_STATS = { tok_s: "tokens/s", kept: "kept", dropped: "dropped", tokens: "tokens", loss: "loss", "loss/domain": "loss on your data", "loss/replay": "loss on replay", "kl/replay": "KL on replay" };
const WHAT = {
  data: "Your data, split", suites: "Questions to measure with", grow: "Growing the corpus", corpus: "Curating it",
  mix: "Mixing", train: "Training", merge: "Averaging", eval: "Evaluating",
};
const what = (stage) => WHAT[stage.split("/")[0]] || stage;

/** Lines by arm with new ones of an arm, which are all there are when the file was begun anew. */
const extended = (lines, { arm, anew, rows }) => ({ ...lines, [arm]: anew ? rows : [...(lines[arm] || []), ...rows] });

/** Follows a run: what the server has told so far. */
const useRun = (name) => {
  const [detail, setDetail] = useState(null);
  const [live, setLive] = useState({ state: null, tasks: {}, notes: [], logs: {}, monitors: {}, corpus: null, problem: "" });
  const news = useMemo(makeNews, [name]);
  const grown = useRef(false);
  const [asked, setAsked] = useState(0);
  useEffect(() => {
    let stale = false, timer;
    get("run", { run: name }).then(
      (found) => {
        if (stale) return;
        setDetail(found);
        if (found.starting === "starting") timer = setTimeout(() => setAsked((n) => n + 1), 1000);
      },
      (error) => stale || setDetail({ error: error.message }),
    );
    return () => {
      stale = true;
      clearTimeout(timer);
    };
  }, [name, asked]);
  const there = detail && !detail.starting && !detail.error;
  const connected = useEvents(there ? name : undefined, {
    state: (state) => {
      setLive((l) => ({ ...l, state, problem: "" }));
      if (state.state !== "running") setAsked((n) => n + 1); // what it printed last
    },
    progress: (row) => setLive((l) => ({ ...l, tasks: { ...l.tasks, [row.task]: row } })),
    notes: (rows) => setLive((l) => ({ ...l, notes: [...l.notes, ...rows].slice(-60) })),
    log: (lines) => setLive((l) => ({ ...l, logs: extended(l.logs, lines) })),
    monitor: (lines) => setLive((l) => ({ ...l, monitors: extended(l.monitors, lines) })),
    corpus: (corpus) => {
      if (grown.current && corpus) news.tell(corpus.parents); // what is shown from now on is as new as this
      grown.current = corpus !== null;
      setLive((l) => ({ ...l, corpus }));
    },
    changed: () => setAsked((n) => n + 1),
    problem: ({ message }) => {
      setLive((l) => ({ ...l, problem: message }));
      setAsked((n) => n + 1); // a run that ended at once takes its folder back: what it printed tells why
    },
  });
  return { detail, live, connected, news };
};

const useNow = (on) => {
  const [now, setNow] = useState(Date.now() / 1000);
  useEffect(() => {
    if (!on) return undefined;
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000);
    return () => clearInterval(timer);
  }, [on]);
  return now;
};

const Bar = ({ row }) => {
  const stats = Object.entries(KNOWN_STATS).filter(([key]) => Number.isFinite(row[key]));
  const known = row.total !== null && row.total !== undefined && row.total > 0;
  return html`<div class="task">
    <div class="what"><bdi>${row.task}</bdi><span class="num">${count(row.done)}${known ? ` of ${count(row.total)}` : ""} ${row.unit}${Number.isFinite(row.eta) ? ` · about ${clock(row.eta)} left` : ""}</span></div>
    ${known ? html`<progress max=${row.total} value=${Math.min(row.done, row.total)} aria-label=${row.task}></progress>` : null}
    ${stats.length ? html`<p class="note">${stats.map(([key, label]) => `${label} ${short(row[key])}`).join(" · ")}</p>` : null}
  </div>`;
};

const Stages = ({ live }) => {
  const { state, tasks } = live;
  const running = state.state === "running";
  const now = useNow(running);
  const known = new Map(state.stages.map((s) => [s.name, s]));
  const names = [...new Set([...state.plan, ...known.keys()])];
  return html`<ol class="stages">${names.map((name) => {
    const stage = known.get(name) || { status: "waiting" };
    const busy = stage.status === "running";
    const seconds = busy ? (stage.seconds || 0) + now - stage.started : stage.seconds;
    const facts = Object.entries(stage.facts || {}).filter(([, v]) => typeof v === "number").slice(0, 4);
    return html`<li key=${name} class=${stage.status}>
      <div class="line"><${State} state=${stage.status} /> <strong>${what(name)}</strong> <code>${name}</code>
        <span class="num time">${Number.isFinite(seconds) ? clock(seconds) : ""}</span></div>
      ${busy ? Object.values(tasks).filter((t) => t.time >= stage.started - 1).map((row) => html`<${Bar} key=${row.task} row=${row} />`) : null}
      ${stage.error ? html`<${Said} tag="p" css="error" text=${stage.error} />` : null}
      ${facts.length ? html`<p class="note">${facts.map(([k, v]) => `${k.replaceAll("_", " ")} ${short(v)}`).join(" · ")}</p>` : null}
    </li>`;
  })}</ol>`;
};

const Progress = ({ live, detail }) => html`
  ${live.state ? html`<${Stages} live=${live} />` : html`<p class="note">Loading…</p>`}
  ${live.corpus ? html`<p class="note">Corpus: ${count(live.corpus.kept)} of ${count(live.corpus.nodes)} nodes kept.</p>` : null}
  ${live.notes.length ? html`<h2>Notes</h2><ul class="log">${live.notes.map((n, i) => html`<li key=${i}><time class="num">${n.time ? new Date(n.time * 1000).toLocaleTimeString() : ""}</time> <${Said} text=${n.text} /></li>`)}</ul>` : null}
  ${detail.printed ? html`<h2>What it printed</h2><pre class="said" tabindex="0" aria-label="What it printed">${detail.printed}</pre>` : null}`;

const Cell = ({ cell }) => html`<span class="big">${cell.value}</span> <span class="unit">${cell.unit}</span><span class="ci">${cell.ci}</span>${cell.word ? html`<span class="word">${cell.word}</span>` : null}`;

const Results = ({ detail, name }) => {
  if (!detail.verdict) return null;
  const known = armsOf(detail);
  const style = (arm) => (known[arm] || { style: 0 }).style;
  const { verdict, headline, suites } = detail;
  return html`<div class="verdict-line"><span class=${`badge ${verdict.tone}`}><span aria-hidden="true">${verdict.sign}</span> ${verdict.word}</span>
      <${Said} tag="p" css="sentence" text=${verdict.sentence} />
      ${verdict.notes.length ? html`<ul class="numbers">${verdict.notes.map((n, i) => html`<li key=${i}><${Said} text=${n} /></li>`)}</ul>` : null}</div>
    ${headline.length ? html`<p class="actions"><a class="button" href=${`api/report?${new URLSearchParams({ run: name })}`} target="_blank" rel="noopener">The whole report</a></p>
      <${Table} label="Headline numbers" css="headline" head=${["Model", "Learned on your data", "Change on what it knew", "Moved from its own words", "Kept", "Won back from plain SFT"]}>
      ${headline.map((row) => html`<tr key=${row.arm}><th scope="row"><${Arm} name=${row.name} style=${style(row.arm)} /></th>
        <td data-label="Learned on your data"><${Cell} cell=${row.gain} /></td><td data-label="Change on what it knew"><${Cell} cell=${row.change} /></td>
        <td data-label="Moved from its own words"><${Cell} cell=${row.own} /></td>
        <td data-label="Kept"><span class="big">${row.retention}</span><span class="ci">${row.retention_ci}</span></td>
        <td data-label="Won back from plain SFT"><span class="big">${row.recovery}</span><span class="ci">${row.recovery_ci}</span>${row.recovery_why ? html`<span class="word">${row.recovery_why}</span>` : null}</td></tr>`)}
      <//>` : null}
    ${suites.map((suite) => html`<div class="scroll" key=${suite.name} tabindex="0" role="region" aria-label=${`Results of ${suite.name}`}><table class="suite phone">
      <caption><strong><bdi>${suite.name}</bdi></strong> <span class="badge">${suite.kind}</span><span class="how">${suite.n} items · ${suite.metric}, ${suite.direction}</span></caption>
      <thead><tr><th scope="col">Model</th><th scope="col" class="r">Score</th><th scope="col" class="r">Against the base ${suite.unit ? html`<span class="ci">(${suite.unit})</span>` : null}</th></tr></thead>
      <tbody>${suite.arms.map((a) => html`<tr key=${a.arm}><th scope="row"><${Arm} name=${a.name} style=${style(a.arm)} /></th><td class="r num" data-label="Score">${a.value} <span class="ci">${a.ci}</span></td>
        <td class="r num" data-label=${a.diff ? `Against the base${suite.unit ? ` (${suite.unit})` : ""}` : undefined}>${a.word ? html`<span class=${`badge ${a.tone}`}>${a.word}</span> ` : null}${a.diff} <span class="ci">${a.diff_ci}</span></td></tr>`)}</tbody>
      <tfoot><tr><td colspan="3">Noise floor ${suite.noise} · smallest difference this suite can see: ${suite.mdd}${suite.mdd !== "–" ? ` ${suite.unit}` : ""}</td></tr></tfoot></table></div>`)}`;
};

const Made = ({ detail, name }) => html`
  <p class="actions"><a class="button" href=${to("new", { like: name })}>New run with this recipe</a></p>
  ${detail.cost.length ? html`<${Table} label="Cost of each stage" head=${["Stage", "Time", "Tokens", "Tokens/s", "Disk"]}>
    ${detail.cost.map((c) => html`<tr key=${c.stage}><th scope="row">${c.stage} ${c.status ? html`<span class="badge">${c.status}</span>` : null}</th><td class="num">${c.seconds}</td><td class="num">${c.tokens}</td><td class="num">${c.speed}</td><td class="num">${c.disk}</td></tr>`)}<//>` : null}
  ${detail.environment.length ? html`<dl class="kv">${detail.environment.map(([k, v]) => html`<dt key=${k}>${k}</dt><dd><${Said} text=${v} /></dd>`)}</dl>` : null}
  ${detail.recipe ? html`<h2>recipe.yaml</h2><pre class="said" tabindex="0" aria-label="recipe.yaml">${detail.recipe}</pre>` : null}`;

const Buttons = ({ name, state }) => {
  const [said, setSaid] = useState("");
  const [busy, setBusy] = useState("");
  useEffect(() => { setBusy(""); }, [state]);
  const act = (path) => {
    setBusy(path);
    post(path, { run: name }).then(() => setSaid(""), (error) => { setSaid(error.message); setBusy(""); });
  };
  return html`<p class="actions">
    ${state === "running" || state === "starting" ? html`<button type="button" disabled=${busy !== ""} onClick=${() => act("stop")}>${busy === "stop" ? "Stopping…" : "Stop"}</button><span class="note">What is finished is kept.</span>` : null}
    ${["interrupted", "stopped", "empty"].includes(state) ? html`<button type="button" disabled=${busy !== ""} onClick=${() => act("continue")}>${busy === "continue" ? "Starting…" : "Continue"}</button>` : null}
    </p><${Trouble} text=${said} />`;
};

export const Run = ({ name, tab }) => {
  const { detail, live, connected, news } = useRun(name);
  useEffect(() => { document.title = `${name} · Regrow`; }, [name]);
  const state = detail?.starting || live.state?.state;
  const top = html`<div class="title"><h1><bdi>${name === "." ? "This run" : name}</bdi></h1> <span role="status">${state ? html`<${State} state=${state} />` : null}</span></div>`;
  if (!detail) return html`${top}<p class="note">Loading…</p>`;
  if (detail.error) return html`${top}<${Trouble} text=${detail.error} /><p><a href=${to("")}>All runs</a></p>`;
  if (detail.starting) return html`${top}<${Buttons} name=${name} state=${state} />
    <p class="note">${detail.starting === "failed" ? "It ended before it began." : "The libraries are being loaded."}</p>
    ${detail.printed ? html`<pre class="said" tabindex="0" aria-label="What it printed">${detail.printed}</pre>` : null}`;
  const Tab = { progress: Progress, training: Training, results: Results, items: Items, corpus: Tree, recipe: Made }[tab] || Progress;
  return html`${top}
    <p class="lede">${live.state?.model ? html`<${Said} text=${live.state.model} />` : null} <span class="note">${live.state?.created || ""}</span></p>
    <${Buttons} name=${name} state=${state} />
    <${Trouble} text=${connected ? live.problem : "Not connected. Waiting for `regrow ui` to come back."} />
    <nav class="tabs" aria-label="Parts of this run"><ul>${Object.entries(TABS).map(([key, title]) => html`<li key=${key}><a href=${to("run", { name, tab: key })} aria-current=${key === tab ? "page" : undefined}>${title}</a></li>`)}</ul></nav>
    <section class="tab" aria-label=${TABS[tab] || TABS.progress}><${Tab} name=${name} detail=${detail} live=${live} news=${news} /></section>`;
};

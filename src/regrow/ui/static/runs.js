// The runs of the folder, newest first, found by words, a page at a time; several can be chosen to be compared.
import { Said, State, Table, Trouble, count, html, to, useEffect, useEvents, useMemo, useRef, useState } from "./lib.js";

const PAGE = 50;
const MOST_COMPARED = 6; // the server takes no more
const HEAD = ["Compare", "Run", "State", "Made", "Model", "Data", "Verdict", "Learned", "Change on what it knew"];

const said = (r) => [r.name, r.state, r.at, r.created, r.model, r.data, r.result].filter(Boolean).join("\n").toLowerCase();

const Line = ({ run: r, chosen, full, choose }) => html`<tr>
  <td data-label="Compare"><input type="checkbox" aria-label=${`Compare ${r.name}`} checked=${chosen} disabled=${!r.created || (full && !chosen)}
    onChange=${(e) => choose(r.id, e.target.checked)} /></td>
  <th scope="row"><a href=${to("run", { name: r.id })}><bdi>${r.name}</bdi></a></th>
  <td data-label="State"><${State} state=${r.state} />${r.at && r.at.includes(": ") ? html` <span class="note">${r.at.split(": ")[1]}</span>` : null}</td>
  <td data-label="Made" class="num">${r.created}</td>
  <td data-label="Model"><${Said} text=${r.model} /></td>
  <td data-label="Data"><${Said} text=${r.data} /></td>
  <td data-label="Verdict">${r.result}</td>
  <td data-label="Learned">${r.gain}</td>
  <td data-label="Change on what it knew">${r.change}</td>
</tr>`;

const Comparison = ({ chosen, clear }) => {
  if (chosen.length < 2) return html`<span class="note">Tick two or more runs to compare them.</span>`;
  return html`<a class="button" href=${`#/compare?${new URLSearchParams(chosen.map((id) => ["run", id]))}`}>Compare ${chosen.length} runs</a>
    <button type="button" onClick=${clear}>Untick all</button>${chosen.length === MOST_COMPARED ? html`<span class="note">These are as many as fit side by side.</span>` : null}`;
};

const List = ({ runs }) => {
  const [chosen, setChosen] = useState([]);
  const [typed, setTyped] = useState("");
  const [limit, setLimit] = useState(PAGE);
  const place = useRef(null);
  const texts = useMemo(() => runs.map(said), [runs]);
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const fit = runs.filter((_, i) => words.every((w) => texts[i].includes(w)));
  const choose = (id, on) => setChosen((before) => (on ? [...before, id] : before.filter((x) => x !== id)));
  const more = () => {
    setLimit(limit + PAGE);
    // Focus goes to the first of the new ones, where the button was.
    setTimeout(() => place.current?.querySelectorAll("tbody a")[limit]?.focus());
  };
  return html`<p class="actions"><a class="button" href=${to("new")}>New run</a> <${Comparison} chosen=${chosen} clear=${() => setChosen([])} /></p>
    ${runs.length > 1 ? html`<div class="filters"><label class="grow">Search<input type="search" id="run-search" placeholder="Name, state, model, data or verdict" autocomplete="off" value=${typed}
      onInput=${(e) => { setTyped(e.target.value); setLimit(PAGE); }} /></label></div>
    <p class="note" role="status" id="run-status">${fit.length ? `${count(fit.length)} ${fit.length === 1 ? "run" : "runs"}, ${count(Math.min(limit, fit.length))} shown` : "No run fits these words."}</p>` : null}
    ${fit.length ? html`<div ref=${place}><${Table} label="Runs" css="runs" head=${HEAD}>
      ${fit.slice(0, limit).map((r) => html`<${Line} key=${r.id} run=${r} chosen=${chosen.includes(r.id)} full=${chosen.length >= MOST_COMPARED} choose=${choose} />`)}<//></div>` : null}
    ${limit < fit.length ? html`<button type="button" class="more" onClick=${more}>Show more</button>` : null}`;
};

export const Runs = () => {
  const [runs, setRuns] = useState(null);
  const [problem, setProblem] = useState("");
  const connected = useEvents(null, {
    runs: (found) => { setRuns(found); setProblem(""); },
    problem: ({ message }) => setProblem(message),
  });
  useEffect(() => { document.title = "Runs · Regrow"; }, []);
  return html`<h1>Runs</h1>
    <${Trouble} text=${connected ? problem : "Not connected. Waiting for `regrow ui` to come back."} />
    ${runs === null ? html`<p class="note">Loading…</p>` : runs.length === 0
      ? html`<p class="intro">There are no runs in this folder yet. <a href=${to("new")}>Start one</a>, or run <code>regrow tune MODEL DATA -o FOLDER/NAME</code>.</p>`
      : html`<${List} runs=${runs} />`}`;
};

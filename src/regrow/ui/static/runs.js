// The runs of the folder, newest first; several can be chosen to be compared.
import { Said, State, Table, Trouble, html, to, useEffect, useEvents, useState } from "./lib.js";

export const Runs = () => {
  const [runs, setRuns] = useState(null);
  const [chosen, setChosen] = useState([]);
  const [problem, setProblem] = useState("");
  const connected = useEvents(null, {
    runs: (found) => { setRuns(found); setProblem(""); },
    problem: ({ message }) => setProblem(message),
  });
  useEffect(() => { document.title = "Runs · Regrow"; }, []);
  const choose = (id, on) => setChosen((before) => (on ? [...before, id] : before.filter((x) => x !== id)));
  const compare = `#/compare?${new URLSearchParams(chosen.map((id) => ["run", id]))}`;
  return html`<h1>Runs</h1>
    <${Trouble} text=${connected ? problem : "Not connected. Waiting for `regrow ui` to come back."} />
    ${runs === null ? html`<p class="note">Loading…</p>` : runs.length === 0
      ? html`<p class="intro">There are no runs in this folder yet. <a href=${to("new")}>Start one</a>, or run <code>regrow tune MODEL DATA -o FOLDER/NAME</code>.</p>`
      : html`<p class="actions"><a class="button" href=${to("new")}>New run</a>
          ${chosen.length >= 2 ? html`<a class="button" href=${compare}>Compare ${chosen.length} runs</a>` : html`<span class="note">Tick two or more runs to compare them.</span>`}</p>
        <${Table} label="Runs" css="runs" head=${["Compare", "Run", "State", "Made", "Model", "Data", "Verdict", "Learned", "Change on what it knew"]}>
          ${runs.map((r) => html`<tr key=${r.id}>
            <td data-label="Compare"><input type="checkbox" aria-label=${`Compare ${r.name}`} checked=${chosen.includes(r.id)} disabled=${!r.created}
              onChange=${(e) => choose(r.id, e.target.checked)} /></td>
            <th scope="row"><a href=${to("run", { name: r.id })}><bdi>${r.name}</bdi></a></th>
            <td data-label="State"><${State} state=${r.state} />${r.at && r.at.includes(": ") ? html` <span class="note">${r.at.split(": ")[1]}</span>` : null}</td>
            <td data-label="Made" class="num">${r.created}</td>
            <td data-label="Model"><${Said} text=${r.model} /></td>
            <td data-label="Data"><${Said} text=${r.data} /></td>
            <td data-label="Verdict">${r.result}</td>
            <td data-label="Learned">${r.gain}</td>
            <td data-label="Change on what it knew">${r.change}</td>
          </tr>`)}
        <//>`}`;
};

// Two or more runs side by side.
import { Said, Table, Trouble, get, html, to, useEffect, useLoaded } from "./lib.js";
import { Chart, curve } from "./charts.js";

const MAIN = ["regrow", "sft"];
const Curves = ({ names }) => {
  const { data } = useLoaded(() => Promise.all(names.map((run) => get("logs", { run }))), [names.join("\n")]);
  if (!data) return null;
  const chosen = data.map((logs) => MAIN.find((arm) => logs[arm]) || Object.keys(logs)[0]);
  const series = (key) => data.map((logs, i) => (chosen[i] ? curve(logs[chosen[i]], key, `${names[i]} (${chosen[i]})`, i + 1) : null)).filter((s) => s && s.xs.length);
  const charts = [["Loss on your data", series("loss/domain")], ["Loss on the replay rows", series("loss/replay")]].filter(([, s]) => s.length);
  return html`<div class="charts">${charts.map(([title, s]) => html`<${Chart} key=${title} title=${title} series=${s} />`)}</div>`;
};

export const Compare = ({ names }) => {
  useEffect(() => { document.title = "Compare · Regrow"; }, []);
  const { data, error } = useLoaded(
    () => (names.length < 2 ? Promise.reject(new Error("Choose two runs or more.")) : get("compare", names.map((n) => ["run", n]))),
    [names.join("\n")],
  );
  const rows = (title, entries) => (entries.length ? html`<h2>${title}</h2><${Table} label=${title} head=${[title, ...names]}>
    ${entries.map((e) => html`<tr key=${e.key}><th scope="row"><code>${e.key}</code></th>${e.values.map((v, i) => html`<td key=${i}><${Said} text=${v} /></td>`)}</tr>`)}<//>` : null);
  return html`<h1>Side by side</h1><${Trouble} text=${error || ""} />
    ${!data ? (error ? html`<p><a href=${to("")}>All runs</a></p>` : html`<p class="note">Loading…</p>`) : html`
      <ul class="numbers">${data.verdicts.map((v, i) => html`<li key=${i}><a href=${to("run", { name: names[i], tab: "results" })}><bdi>${names[i]}</bdi></a> <span class=${`badge ${v.tone}`}>${v.sign} ${v.word}</span> <${Said} text=${v.sentence} /></li>`)}</ul>
      ${data.numbers.length ? html`<h2>Against the base</h2><${Table} label="Against the base" head=${["Suite", "Model", ...names]}>
        ${data.numbers.map((r) => html`<tr key=${`${r.suite}/${r.arm}`}><th scope="row"><bdi>${r.suite}</bdi></th><td>${r.name}</td>${r.values.map((v, i) => html`<td key=${i} class="num">${v}</td>`)}</tr>`)}<//>` : null}
      <${Curves} names=${names} />
      ${rows("Recipe", data.recipe)}${data.recipe.length ? null : html`<p class="note">The recipes are the same.</p>`}
      ${rows("Versions", data.versions)}
      <ul class="numbers">${data.notes.map((n, i) => html`<li key=${i}><${Said} text=${n} /></li>`)}</ul>`}`;
};

// A run out of a form. The server says which fields there are and what is wrong with what was typed.
import { Prose, Trouble, get, html, post, to, useEffect, useLoaded, useRef, useSettled, useState } from "./lib.js";

const suggestion = () => {
  const now = new Date();
  const two = (n) => String(n).padStart(2, "0");
  return `run-${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}-${two(now.getHours())}${two(now.getMinutes())}`;
};
const idOf = (key) => `f-${key.replaceAll(".", "-")}`;

const Field = ({ field, value, problem, onInput }) => {
  const id = idOf(field.key);
  const common = {
    id, name: field.key, "aria-describedby": `${id}-help${problem ? ` ${id}-problem` : ""}`, "aria-invalid": problem ? "true" : undefined,
    onInput: (e) => onInput(field.key, e.target.value), autocomplete: "off",
  };
  const options = field.kind === "bool" ? ["true", "false"] : field.choices;
  const bounds = [field.least, field.most].filter(Boolean).join(" and ");
  return html`<div class=${`field ${problem ? "wrong" : ""}`}>
    <label for=${id}>${field.key}</label>
    ${field.locked ? html`<p class="note" id=${`${id}-help`}>Only on the command line: it ${field.locked}.</p>` : html`
      ${options.length ? html`<select ...${common} value=${value}><option value="" selected=${!value}>${field.default || "not set"} (default)</option>${options.filter((o) => o !== field.default).map((o) => html`<option key=${o} value=${o} selected=${o === value}>${o}</option>`)}</select>`
        : field.kind === "long" ? html`<textarea ...${common} rows="3" placeholder=${field.default} value=${value} spellcheck="false"></textarea>`
        : html`<input ...${common} type="text" inputmode=${field.kind === "int" ? "numeric" : undefined} placeholder=${field.default || "not set"} value=${value} spellcheck="false" />`}
      ${problem ? html`<p class="problem" id=${`${id}-problem`}><span aria-hidden="true">✕</span> ${problem}</p>` : null}
      <p class="note" id=${`${id}-help`}><${Prose} text=${field.help} />${bounds ? ` (${bounds})` : ""}</p>`}
  </div>`;
};

export const New = ({ like }) => {
  const { data: form, error } = useLoaded(() => get("form"), []);
  const [name, setName] = useState(suggestion());
  const [values, setValues] = useState({});
  const [touched, setTouched] = useState(new Set());
  const [problems, setProblems] = useState({});
  const [refused, setRefused] = useState("");
  const [busy, setBusy] = useState(false);
  const [search, setSearch] = useState("");
  const [all, setAll] = useState(false);
  const top = useRef(null);
  useEffect(() => { document.title = "New run · Regrow"; }, []);
  useEffect(() => {
    if (like) get("form/values", { run: like }).then(setValues, (failed) => setRefused(failed.message));
  }, [like]);
  const settled = useSettled(values, 350);
  useEffect(() => {
    if (!touched.size) return undefined;
    let stale = false;
    // While one types, only what was touched is complained about.
    post("check", { values: settled }).then((found) => stale || setProblems((before) => ({
      ...Object.fromEntries(Object.entries(found.problems).filter(([key]) => all || key === "" || touched.has(key))),
      ...(before.name ? { name: before.name } : {}),
    })), () => {});
    return () => { stale = true; };
  }, [settled]);
  if (!form) return html`<h1>New run</h1><${Trouble} text=${error || ""} />`;
  const fields = form.sections.flatMap((s) => s.fields);
  const type = (key, text) => {
    setTouched(new Set([...touched, key]));
    setValues({ ...values, [key]: text });
  };
  const back = (found, said) => {
    setBusy(false);
    setProblems(found);
    setRefused(said);
    setTimeout(() => top.current?.focus());
  };
  const start = (event) => {
    event.preventDefault();
    setBusy(true);
    setAll(true);
    setRefused("");
    post("start", { name, values }).then(
      ({ run, problems: found }) => {
        if (found) back(found, "");
        else location.hash = to("run", { name: run });
      },
      (failed) => back({}, failed.message),
    );
  };
  const input = (field) => html`<${Field} key=${field.key} field=${field} value=${values[field.key] || ""} problem=${problems[field.key]} onInput=${type} />`;
  const fits = (field) => !search || `${field.key} ${field.help}`.toLowerCase().includes(search.toLowerCase());
  const wrong = Object.entries(problems);
  const elsewhere = (key) => document.getElementById(idOf(key));
  const jump = (key) => (event) => {
    event.preventDefault();
    const at = key === "name" ? document.getElementById("run-name") : elsewhere(key);
    for (let fold = at?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    at?.focus();
  };
  return html`<h1>New run</h1>
    <p class="intro">${like ? html`With the recipe of <bdi>${like}</bdi>. ` : ""}An empty field takes its default, which it shows. Paths are as seen from where <code>regrow ui</code> was started.</p>
    <form class="recipe" onSubmit=${start} novalidate>
      <div tabindex="-1" ref=${top}>${wrong.length && all ? html`<div class="panel trouble" role="alert"><strong>${wrong.length === 1 ? "One thing" : `${wrong.length} things`} to mend</strong><ul>
        ${wrong.map(([key, text]) => html`<li key=${key}>${key ? html`<a href="#" onClick=${jump(key)}>${key}</a>: ` : ""}${text}</li>`)}</ul></div>` : null}
        <${Trouble} text=${refused} /></div>
      <div class=${`field ${problems.name ? "wrong" : ""}`}><label for="run-name">Name of the run</label>
        <input id="run-name" type="text" autocomplete="off" spellcheck="false" value=${name} onInput=${(e) => setName(e.target.value)} aria-describedby="run-name-help" aria-invalid=${problems.name ? "true" : undefined} />
        ${problems.name ? html`<p class="problem"><span aria-hidden="true">✕</span> ${problems.name}</p>` : null}
        <p class="note" id="run-name-help">Its folder, inside the folder of runs.</p></div>
      <div class="fields">${fields.filter((f) => f.first).map(input)}</div>
      <h2>Everything else</h2>
      <p><label class="find">Find a key <input type="search" id="field-search" autocomplete="off" value=${search} onInput=${(e) => setSearch(e.target.value)} /></label></p>
      ${form.sections.map((s) => {
        const rest = s.fields.filter((f) => !f.first && fits(f));
        const bad = rest.some((f) => problems[f.key]);
        return rest.length ? html`<details class="fold" key=${s.name} open=${Boolean(search) || bad || undefined}><summary><code>${s.name || "recipe"}</code> <span class="note"><${Prose} text=${s.help} /></span></summary><div class="fields">${rest.map(input)}</div></details>` : null;
      })}
      <p class="actions"><button type="submit" class="main" disabled=${busy}>${busy ? "Starting…" : "Start the run"}</button> <a href=${to("")}>Back to the runs</a></p>
    </form>`;
};

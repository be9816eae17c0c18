// The corpus: children are fetched when their parent is opened, page by page, and taken out again when it is closed.
import { Said, Trouble, count, get, html, useEffect, useState } from "./lib.js";

const PAGE = 50;
const WHO = { user: ["user", "User"], assistant: ["assistant", "Model"], text: ["assistant", "Text"], topic: ["", ""] };

const Level = ({ name, parent, version }) => {
  const [branches, setBranches] = useState([]);
  const [total, setTotal] = useState(null);
  const [error, setError] = useState("");
  const fetchFrom = (offset) => get("tree", { run: name, parent, offset, limit: PAGE }).then(
    (found) => {
      setTotal(found.total);
      setBranches((before) => (offset ? [...before, ...found.branches] : found.branches));
      setError("");
    },
    (failed) => setError(failed.message),
  );
  useEffect(() => { fetchFrom(0); }, [name, parent, version]);
  if (error) return html`<${Trouble} text=${error} />`;
  if (total === null) return html`<p class="note">Loading…</p>`;
  return html`<ul>${branches.map((b) => html`<${Branch} key=${b.id} name=${name} branch=${b} version=${version} />`)}
    ${branches.length < total ? html`<li><button type="button" class="small" onClick=${() => fetchFrom(branches.length)}>Show ${count(Math.min(PAGE, total - branches.length))} more of ${count(total)}</button></li>` : null}</ul>`;
};

const Branch = ({ name, branch, version }) => {
  const [open, setOpen] = useState(false);
  const [css, who] = WHO[branch.role] || ["", branch.role];
  const line = html`${who ? html`<span class=${`who ${css}`}>${who}</span>` : null}<${Said} text=${branch.text || (branch.role === "topic" ? "(no topic)" : "(nothing)")} css=${branch.role} />
    ${branch.kept ? null : html` <span class="badge">dropped: ${branch.reason || "no reason recorded"}</span>`}`;
  if (!branch.children) return html`<li class=${branch.kept ? "" : "dropped"}><div class="leaf">${line}</div></li>`;
  return html`<li class=${branch.kept ? "" : "dropped"}>
    <button type="button" class="branch" aria-expanded=${open ? "true" : "false"} onClick=${() => setOpen(!open)}>${line} <span class="count">· ${count(branch.children)}</span></button>
    ${open ? html`<${Level} name=${name} parent=${branch.id} version=${version} />` : null}</li>`;
};

const SOURCES = { corpus: "The curated corpus", grow: "The corpus as it was grown" };

export const Tree = ({ name, live }) => {
  const [version, setVersion] = useState(0);
  const corpus = live.corpus;
  if (!corpus) return html`<p class="note">Nothing has been grown yet.</p>`;
  return html`<p class="intro">${SOURCES[corpus.source]}: ${count(corpus.kept)} of ${count(corpus.nodes)} nodes kept. <button type="button" class="small" onClick=${() => setVersion(version + 1)}>Look again</button></p>
    <div class="panel tree" id="tree"><${Level} name=${name} parent="" version=${version} /></div>`;
};

// The corpus: children are fetched when their parent is opened, page by page, and taken out again when it is closed.
// While it grows, levels that are open look again at what they show when the server names a node of theirs.
import { Said, Trouble, count, get, html, useEffect, useRef, useState } from "./lib.js";

const PAGE = 50;
const AT_ONCE = 200; // as many as the server gives at a time
const EVERY_MS = 1000;
const WHO = { user: ["user", "User"], assistant: ["assistant", "Model"], text: ["assistant", "Text"], topic: ["", ""] };

/** Tells its readers below which nodes there are new ones (a set of ids, or null for anywhere), once a second. */
export const makeNews = () => {
  const readers = new Set();
  let named = new Set(), timer = null;
  return {
    read: (reader) => {
      readers.add(reader);
      return () => readers.delete(reader);
    },
    tell: (parents) => {
      if (parents === null) named = null;
      else if (named !== null) for (const id of parents) named.add(id);
      timer ??= setTimeout(() => {
        const told = named;
        [named, timer] = [new Set(), null];
        for (const reader of [...readers]) reader(told);
      }, EVERY_MS);
    },
  };
};

/** Some children of a node, as far as they have been asked for, kept up to date: `{branches, total, error, more}`. */
const useLevel = (name, parent, news) => {
  const [level, setLevel] = useState({ branches: [], total: null, error: "" });
  const now = useRef(level);
  const wanted = useRef(new Map()); // offset -> limit
  const busy = useRef(false);
  const gone = useRef(false);
  const set = (next) => {
    now.current = next;
    setLevel(next);
  };
  const fetchWanted = async () => {
    if (busy.current) return;
    busy.current = true;
    while (wanted.current.size && !gone.current) {
      const asked = [...wanted.current];
      wanted.current.clear();
      try {
        const found = [];
        for (const [offset, limit] of asked) found.push([offset, limit, await get("tree", { run: name, parent, offset, limit })]);
        if (gone.current) break;
        let { branches, total } = now.current;
        for (const [offset, limit, part] of found) {
          branches = [...branches.slice(0, offset), ...part.branches, ...branches.slice(offset + limit)];
          total = part.total;
        }
        // Two parts of a level that grew in between can both have a node.
        const ids = new Map(branches.map((b) => [b.id, b]));
        set({ branches: [...ids.values()].slice(0, total), total, error: "" });
      } catch (failed) {
        set({ ...now.current, error: failed.message });
      }
    }
    busy.current = false;
  };
  const again = (parents) => {
    const { branches } = now.current;
    const all = parents === null || parents.has(parent);
    for (let offset = 0; offset === 0 || offset < branches.length; offset += AT_ONCE) {
      const part = branches.slice(offset, offset + AT_ONCE);
      if (all || part.some((b) => parents.has(b.id))) wanted.current.set(offset, Math.max(PAGE, part.length));
    }
    fetchWanted();
  };
  useEffect(() => {
    gone.current = false;
    again(null);
    const leave = news.read(again);
    return () => {
      gone.current = true;
      leave();
    };
  }, [name, parent, news]);
  const more = () => {
    wanted.current.set(now.current.branches.length, PAGE);
    fetchWanted();
  };
  return { ...level, more };
};

const Level = ({ name, parent, news }) => {
  const { branches, total, error, more } = useLevel(name, parent, news);
  if (total === null) return error ? html`<${Trouble} text=${error} />` : html`<p class="note">Loading…</p>`;
  return html`<${Trouble} text=${error} /><ul>${branches.map((b) => html`<${Branch} key=${b.id} name=${name} branch=${b} news=${news} />`)}
    ${branches.length < total ? html`<li key="more"><button type="button" class="small" onClick=${more}>Show ${count(Math.min(PAGE, total - branches.length))} more of ${count(total)}</button></li>` : null}</ul>`;
};

const Branch = ({ name, branch, news }) => {
  const [open, setOpen] = useState(false);
  const [css, who] = WHO[branch.role] || ["", branch.role];
  const line = html`${who ? html`<span class=${`who ${css}`}>${who}</span>` : null}<${Said} text=${branch.text || (branch.role === "topic" ? "(no topic)" : "(nothing)")} css=${branch.role} />
    ${branch.kept ? null : html` <span class="badge">dropped: ${branch.reason || "no reason recorded"}</span>`}`;
  if (!branch.children) return html`<li class=${branch.kept ? "" : "dropped"}><div class="leaf">${line}</div></li>`;
  return html`<li class=${branch.kept ? "" : "dropped"}>
    <button type="button" class="branch" aria-expanded=${open ? "true" : "false"} onClick=${() => setOpen(!open)}>${line} <span class="count">· ${count(branch.children)}</span></button>
    ${open ? html`<${Level} name=${name} parent=${branch.id} news=${news} />` : null}</li>`;
};

const SOURCES = { corpus: "The curated corpus", grow: "The corpus as it was grown" };

export const Tree = ({ name, live, news }) => {
  const corpus = live.corpus;
  if (!corpus) return html`<p class="note">Nothing has been grown yet.</p>`;
  return html`<p class="intro">${SOURCES[corpus.source]}: ${count(corpus.kept)} of ${count(corpus.nodes)} nodes kept.</p>
    <div class="panel tree" id="tree"><${Level} name=${name} parent="" news=${news} /></div>`;
};

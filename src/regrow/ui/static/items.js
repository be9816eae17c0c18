// Items side by side: what each model answered, and what became of it.
import { Arm, Said, Trouble, count, get, html, useEffect, useLoaded, useRef, useSettled, useState } from "./lib.js";

const PAGE = 40;
const TONES = { lost: "bad", saved: "good", won: "good" };

const Item = ({ item, outcomes, styles }) => html`<li class="item">
  <div class="meta">${item.outcome ? html`<span class=${`badge ${TONES[item.outcome] || ""}`}>${outcomes[item.outcome]}</span>` : null}
    <bdi>${item.domain || item.suite}</bdi><span>${item.suite}</span><bdi>${item.id}</bdi></div>
  <${Said} tag="p" css="q" text=${item.question} />
  <dl class="answers">
    ${item.reference ? html`<div><dt class="ref">Right answer</dt><dd class="said" dir="auto">${item.reference}</dd><dd class="mark-cell"></dd></div>` : null}
    ${item.answers.map((a) => html`<div key=${a.arm} class=${`a${(styles[a.arm] || 0) % 6}`}><dt>${a.name}</dt><dd class="said" dir="auto">${a.text || "(nothing)"}</dd>
      <dd class=${`mark-cell ${a.right === null ? "" : a.right ? "ok" : "no"}`}>${a.right === null ? "" : a.right ? "✓ right" : "✕ wrong"}</dd></div>`)}
  </dl></li>`;

export const Items = ({ name, detail }) => {
  const [arm, setArm] = useState(detail.main || "");
  const [outcome, setOutcome] = useState("");
  const [domain, setDomain] = useState("");
  const [suite, setSuite] = useState("");
  const [typed, setTyped] = useState("");
  const [limit, setLimit] = useState(PAGE);
  const words = useSettled(typed);
  const list = useRef(null);
  useEffect(() => { setLimit(PAGE); }, [arm, outcome, domain, suite, words]);
  const [more, setMore] = useState([]);
  const { data, error } = useLoaded(() => get("items", { run: name, arm, outcome, domain, suite, q: words, limit: PAGE }), [name, arm, outcome, domain, suite, words, detail]);
  useEffect(() => { setMore([]); }, [data]);
  if (!data) return html`<${Trouble} text=${error || ""} />${error ? null : html`<p class="note">Loading…</p>`}`;
  if (!data.arms.length || (!data.items.length && !data.all && !words && !domain && !suite)) return html`<p class="note">No items have been evaluated yet.</p>`;
  const shown = [...data.items, ...more];
  const styles = Object.fromEntries((detail.arms || []).map((a) => [a.arm, a.style]));
  const outcomes = Object.fromEntries(data.outcomes.map((o) => [o.key, o.name]));
  const fetchMore = () => get("items", { run: name, arm, outcome, domain, suite, q: words, offset: shown.length, limit: PAGE }).then((found) => {
    setMore([...more, ...found.items]);
    // Focus goes to the first of the new ones, where the button was.
    setTimeout(() => {
      const next = list.current?.children[shown.length];
      if (next) {
        next.tabIndex = -1;
        next.focus({ preventScroll: true });
      }
    });
  });
  const select = (label, value, set, options, id) => html`<label>${label}<select id=${id} value=${value} onChange=${(e) => set(e.target.value)}>${options.map(([v, text]) => html`<option key=${v} value=${v} selected=${v === value}>${text}</option>`)}</select></label>`;
  return html`<${Trouble} text=${error || ""} />
    <div class="filters">
      ${select("Model", arm, setArm, data.arms.map((a) => [a.arm, a.name]), "item-arm")}
      ${select("Suite", suite, setSuite, [["", "All suites"], ...data.suites.map((s) => [s, s])], "item-suite")}
      ${select("Domain", domain, setDomain, [["", "All domains"], ...data.domains.map((d) => [d, d])], "item-domain")}
      <label class="grow">Search<input type="search" id="item-search" placeholder="Question or answer" autocomplete="off" value=${typed} onInput=${(e) => setTyped(e.target.value)} /></label>
    </div>
    <fieldset class="chips"><legend class="visually-hidden">What happened</legend>
      ${[{ key: "", name: "All", n: data.all, help: "" }, ...data.outcomes].map((o) => html`<label key=${o.key} title=${o.help}><input type="radio" name="outcome" value=${o.key} checked=${o.key === outcome} onChange=${() => setOutcome(o.key)} /><span>${o.name}<b>${count(o.n)}</b></span></label>`)}
    </fieldset>
    <p class="note" role="status" id="item-status">${data.total ? `${count(data.total)} ${data.total === 1 ? "item" : "items"}, ${count(shown.length)} shown` : "No item fits this choice."}</p>
    <ol class="items" id="item-list" ref=${list}>${shown.map((item) => html`<${Item} key=${`${item.suite}/${item.id}`} item=${item} outcomes=${outcomes} styles=${styles} />`)}</ol>
    ${shown.length < data.total ? html`<button type="button" class="more" onClick=${fetchMore}>Show more</button>` : null}`;
};

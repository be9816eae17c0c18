// The curves of a run's trainings, what they forget while they train, and what they were mixed from.
import { Arm, Table, armsOf, count, html, useMemo } from "./lib.js";
import { Chart, Stroke, curve, named } from "./charts.js";

const MOST_CURVES = 8;
const MOST_ROWS = 12;

/**
 * What a monitor has measured of each domain, those that are most forgotten first: `{domain, style, first, last, worst,
 * at, kl}`, losses and KL in nats a token, `worst` the highest rise above the first loss and `at` its step.
 */
const measured = (rows) =>
  named(rows, "heldout/").map((domain, style) => {
    const { xs, ys } = curve(rows, `heldout/${domain}`, domain, style);
    const worst = ys.reduce((most, y, i) => (y > ys[most] ? i : most), 0);
    const kl = curve(rows, `heldout_kl/${domain}`, domain, style).ys.at(-1);
    return { domain, style, first: ys[0], last: ys.at(-1), worst: ys[worst] - ys[0], at: xs[worst], kl };
  }).sort((a, b) => b.last - b.first - (a.last - a.first));

const rise = (rows, { domain, style, first }) => {
  const { xs, ys } = curve(rows, `heldout/${domain}`, domain, style);
  return { label: domain, style, xs, ys: ys.map((y) => y - first) };
};

/** The mean of several curves at the steps that all of them have. */
const mean = (series) => {
  const sums = new Map();
  for (const { xs, ys } of series)
    xs.forEach((x, i) => {
      const [sum, n] = sums.get(x) || [0, 0];
      sums.set(x, [sum + ys[i], n + 1]);
    });
  const whole = [...sums].filter(([, [, n]]) => n === series.length);
  return { label: `mean of all ${count(series.length)}`, style: series.length, xs: whole.map(([x]) => x), ys: whole.map(([, [sum, n]]) => sum / n) };
};

/** The curves of so many that a reader can tell them apart, and the mean of all where some are left out. */
const fewest = (series) => (series.length <= MOST_CURVES ? series : [...series.slice(0, MOST_CURVES), mean(series)]);

const signed = (x) => {
  const text = Math.abs(x).toFixed(3);
  return Number(text) === 0 ? text : `${x < 0 ? "−" : "+"}${text}`;
};
const nats = (x) => (Number.isFinite(x) ? x.toFixed(3) : "–");

const HEAD = ["Held out of", "Loss at first", "Now", "Change", "Highest", "At step", "KL from the start"];
const Row = ({ found }) => html`<tr>
  <th scope="row" class=${`a${found.style % 6}`}><${Stroke} style=${found.style} /> <bdi>${found.domain}</bdi></th>
  <td data-label=${HEAD[1]} class="num">${nats(found.first)}</td><td data-label=${HEAD[2]} class="num">${nats(found.last)}</td>
  <td data-label=${HEAD[3]} class="num">${signed(found.last - found.first)}</td>
  <td data-label=${HEAD[4]} class="num">${found.worst > 0 ? signed(found.worst) : "–"}</td><td data-label=${HEAD[5]} class="num">${found.worst > 0 ? count(found.at) : ""}</td>
  <td data-label=${HEAD[6]} class="num">${nats(found.kl)}</td></tr>`;

const Monitor = ({ rows, arm }) => {
  const [domains, rises, kls] = useMemo(() => {
    const found = measured(rows);
    const kl = found.map((d) => curve(rows, `heldout_kl/${d.domain}`, d.domain, d.style)).filter((s) => s.xs.length);
    return [found, fewest(found.map((d) => rise(rows, d))), fewest(kl)];
  }, [rows]);
  if (!domains.length) return null;
  const table = (part, rest) => html`<${Table} label=${`Forgetting monitor of ${arm.name}${rest}`} css="monitor phone" head=${HEAD}>${part.map((d) => html`<${Row} key=${d.domain} found=${d} />`)}<//>`;
  return html`<h3><${Arm} name=${arm.name} style=${arm.style} /></h3>
    <div class="charts"><${Chart} title=${`Change of the held-out loss, ${arm.name}`} series=${rises} />
      ${kls.length ? html`<${Chart} title=${`KL from the model before its first step, ${arm.name}`} series=${kls} />` : null}</div>
    ${table(domains.slice(0, MOST_ROWS), "")}
    ${domains.length > MOST_ROWS ? html`<details class="fold"><summary>${count(domains.length - MOST_ROWS)} more</summary><div>${table(domains.slice(MOST_ROWS), ", the rest")}</div></details>` : null}`;
};

const Monitors = ({ monitors, arms }) => {
  const there = arms.filter(({ arm }) => monitors[arm]?.length);
  return html`<section aria-label="Forgetting monitor"><h2>What is forgotten on the way</h2>
    ${there.length ? html`<p class="note">Measured on rows that are never trained on, the most forgotten first. A loss that rises is forgotten, one that falls is learned; 0 is the model before its first step.</p>
      ${there.map((a) => html`<${Monitor} key=${a.arm} rows=${monitors[a.arm]} arm=${a} />`)}`
      : html`<p class="note">Nothing held out is measured in this training. <code>curate.watch_dialogues</code> holds dialogues of the model’s own out for it.</p>`}</section>`;
};

const SHARES = { "asked/": "Mixture weights by domain", "mix/": "Share of the tokens drawn" };
const Shares = ({ rows, name }) => {
  const charts = useMemo(() => Object.entries(SHARES).map(([prefix, title]) => {
    const series = named(rows, prefix).map((d, i) => curve(rows, prefix + d, d, i)).sort((a, b) => b.ys.at(-1) - a.ys.at(-1));
    const left = series.length > MOST_CURVES ? `, the ${MOST_CURVES} largest of ${count(series.length)}` : "";
    return { title: `${title}, ${name}${left}`, series: series.slice(0, MOST_CURVES) };
  }).filter(({ series }) => series.length), [rows, name]);
  return charts.map(({ title, series }) => html`<${Chart} key=${title} title=${title} series=${series} yLabel="share" />`);
};

const Mix = ({ mix }) => html`<section><h2>The mixture of ${mix.name}</h2>
  ${Number.isFinite(mix.asked.replay_ratio) ? html`<p class="note">${(mix.asked.replay_ratio * 100).toFixed(1)} % of the ${mix.asked.unit || "tokens"} asked to be replay</p>` : null}
  ${mix.rows.map((row) => {
    const share = (row.replay / (row.domain + row.replay)) * 100;
    return html`<div class="mix" key=${row.unit}><div class="what"><span>${row.unit}</span><span class="num">${share.toFixed(1)} % replay</span></div>
      <svg class="stack" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="dom" x="0" y="0" width=${100 - share} height="10" /><rect class="rep" x=${100 - share} y="0" width=${share} height="10" /></svg>
      <p class="note">${count(row.domain)} of your data, ${count(row.replay)} of replay</p></div>`;
  })}</section>`;

export const Training = ({ live, detail }) => {
  const { logs, monitors } = live;
  const known = armsOf(detail);
  const arms = [...new Set([...Object.keys(logs), ...Object.keys(monitors)])]
    .filter((arm) => logs[arm]?.length || monitors[arm]?.length)
    .map((arm, i) => ({ arm, name: arm, style: i + 1, ...known[arm] }));
  if (!arms.length && !(detail.mixes || []).length) return html`<p class="note">Nothing has been trained yet.</p>`;
  const byArm = (key) => arms.map(({ arm, name, style }) => curve(logs[arm] || [], key, name, style)).filter((s) => s.xs.length);
  const charts = [
    ["Loss on your data", byArm("loss/domain")],
    ["Loss on the replay rows", byArm("loss/replay")],
    ["KL from the base on the replay rows", byArm("kl/replay")],
    ["Learning rate", byArm("lr"), ""],
    ["Tokens a second", byArm("tok_s"), ""],
  ];
  // The monitor's file has each measurement at its own step; a log has them at the step of its next line.
  const shared = (arm) => (monitors[arm]?.length ? monitors[arm] : logs[arm]);
  if (!charts[0][1].length) charts.unshift(["Loss", byArm("loss")]);
  return html`<div class="charts">${charts.filter(([, s]) => s.length).map(([title, series, unit]) => html`<${Chart} key=${title} title=${title} series=${series} yLabel=${unit === undefined ? "nats/token" : unit} />`)}
      ${arms.map(({ arm, name }) => html`<${Shares} key=${arm} rows=${shared(arm)} name=${name} />`)}</div>
    ${arms.length ? html`<${Monitors} monitors=${monitors} arms=${arms} />` : null}
    ${(detail.mixes || []).map((mix) => html`<${Mix} key=${mix.arm} mix=${mix} />`)}`;
};

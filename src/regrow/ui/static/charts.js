// Curves over steps, drawn by uPlot; our legend shows the values under the cursor, or the last ones.
import { html, short, useEffect, useMemo, useRef, useState } from "./lib.js";

const DASHES = [[4, 4], [8, 4], [], [2, 3], [10, 3, 2, 3], [1, 4]];
// Colour and dashes together tell 36 series apart, and the dashes alone the first six.
const dashOf = (style) => DASHES[(style + Math.floor(style / 6)) % 6];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Three significant digits, also of a learning rate. */
const figure = (x) => (x === null || x === undefined ? "–" : x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : short(x));

/** One axis of steps for all series; a series without a value at a step has a gap there that is bridged. */
const aligned = (series) => {
  const xs = [...new Set(series.flatMap((s) => s.xs))].sort((a, b) => a - b);
  const at = new Map(xs.map((x, i) => [x, i]));
  const columns = series.map((s) => {
    const column = new Array(xs.length).fill(null);
    s.xs.forEach((x, i) => { column[at.get(x)] = s.ys[i]; });
    return column;
  });
  return [xs, ...columns];
};

const options = (series, width, yLabel, onCursor) => {
  const [ink, line, font] = [colour("--muted"), colour("--line"), "12px system-ui, sans-serif"];
  const axis = { stroke: ink, font, labelFont: font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  return {
    width, height: 240, legend: { show: false }, scales: { x: { time: false } },
    cursor: { drag: { x: true, y: false } },
    axes: [{ ...axis, label: "step", size: 34, labelSize: 18 }, { ...axis, label: yLabel, size: 62, labelSize: 20, values: (_, ticks) => ticks.map(figure) }],
    series: [{}, ...series.map((s) => ({
      label: s.label, stroke: colour(`--a${s.style % 6}`), dash: dashOf(s.style),
      width: 2, spanGaps: true, points: { show: s.xs.length < 2 },
    }))],
    hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx)] },
  };
};

/** A piece of the line that a style is drawn as. */
export const Stroke = ({ style }) => html`<svg width="26" height="10" aria-hidden="true"><line class="stroke" x1="1" x2="25" y1="5" y2="5" stroke-dasharray=${dashOf(style).join(" ")} /></svg>`;

export const Chart = ({ title, series, yLabel = "nats/token" }) => {
  const place = useRef(null);
  const plot = useRef(null);
  const [cursor, setCursor] = useState(null);
  const data = useMemo(() => aligned(series), [series]);
  const shape = series.map((s) => `${s.label}/${s.style}/${s.xs.length < 2}`).join("|");
  const newest = useRef(data);
  newest.current = data;
  useEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      plot.current = new window.uPlot(options(series, Math.max(240, place.current.clientWidth), yLabel, setCursor), newest.current, place.current);
    };
    draw();
    const width = new ResizeObserver(() => plot.current.setSize({ width: Math.max(240, place.current.clientWidth), height: 240 }));
    width.observe(place.current);
    // Canvas does not follow the page's colours by itself.
    const theme = new MutationObserver(draw);
    theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", draw);
    return () => {
      width.disconnect();
      theme.disconnect();
      system.removeEventListener("change", draw);
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, yLabel]);
  useEffect(() => { plot.current?.setData(data); }, [data]);
  const valueAt = (k) => {
    const column = data[k + 1];
    let i = cursor === null || cursor === undefined ? column.length - 1 : Math.min(cursor, column.length - 1);
    while (i > 0 && column[i] === null) i -= 1;
    return column[i];
  };
  const step = cursor === null || cursor === undefined ? data[0].at(-1) : data[0][cursor];
  const told = series.map((s, k) => `${s.label} ${figure(valueAt(k))}`).join(", ");
  return html`<figure class="panel plot">
    <figcaption><strong>${title}</strong> <span class="note">step ${step}</span></figcaption>
    <div class="canvas" ref=${place} role="img" aria-label=${`${title}: at step ${step}, ${told}`}></div>
    <ul class="legend">${series.map((s, k) => html`<li key=${s.label} class=${`a${s.style % 6}`}>
      <${Stroke} style=${s.style} /> <bdi>${s.label}</bdi> <span class="num">${figure(valueAt(k))}</span></li>`)}</ul>
  </figure>`;
};

/** A series of one key of a training log. */
export const curve = (rows, key, label, style) => {
  const fit = rows.filter((r) => Number.isFinite(r[key]) && Number.isFinite(r.step));
  return { label, style, xs: fit.map((r) => r.step), ys: fit.map((r) => r[key]) };
};

/** Names behind a prefix in any line of a log: the domains of `mix/<domain>`. */
export const named = (rows, prefix) =>
  [...new Set(rows.flatMap((r) => Object.keys(r).filter((k) => k.startsWith(prefix)).map((k) => k.slice(prefix.length))))].sort();

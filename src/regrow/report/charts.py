"""Charts as inline SVG, made here: no script, no library in the page, colours from the page's CSS variables.

Each chart is drawn twice, for a wide and a narrow column, and CSS shows the one that fits: one drawing scaled down to
a phone would have unreadable labels. Arms differ by marker shape as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from regrow.report.numbers import MINUS

SHAPES = ("circle", "square", "diamond", "up", "down", "cross")
MAX_CURVE_POINTS = 240


@dataclass(frozen=True, slots=True)
class Point:
    """An arm in the gain/retention picture; intervals as ``(low, high)`` or None.

    ``style`` is the arm's number in the palette (0 is the base).
    """

    label: str
    style: int
    x: float
    y: float
    x_ci: tuple[float, float] | None = None
    y_ci: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A training curve."""

    label: str
    style: int
    xs: list[float]
    ys: list[float]


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high`` (steps of 1, 2 or 5 times a power of ten)."""
    span = high - low
    if not math.isfinite(span) or span < 1e-11:  # ticks are rounded to twelve decimals
        return [low]
    raw = span / max(1, target)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, step: float, *, signed: bool = False) -> str:
    """A tick's label with as many decimals as its step needs."""
    digits = max(0, -math.floor(math.log10(abs(step)) + 1e-9)) if step else 0
    text = f"{abs(value):,.{digits}f}"
    if not text.strip("0.,"):
        return "0"
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def marker(style: int, x: float, y: float, r: float = 7.0) -> Markup:
    """An arm's marker: shape by number, colour by the class ``a<number>``."""
    shape = SHAPES[style % len(SHAPES)]
    css = f"mark a{style % len(SHAPES)}"
    if shape == "circle":
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(css, x, y, r)
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "up": [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
        "down": [(0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
        "cross": [(-1, -0.35), (-0.35, -0.35), (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35),
                  (0.35, 0.35), (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35)],
    }[shape]  # fmt: skip
    path = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in corners)
    return Markup('<polygon class="{}" points="{}"/>').format(css, path)


def legend_marker(style: int) -> Markup:
    """A marker to put beside a name in running text."""
    return Markup('<svg class="key" viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">{}</svg>').format(
        marker(style, 8, 8, 5.6)
    )


class _Frame:
    """Scales and axes of one drawing."""

    def __init__(
        self, width: int, height: int, x: tuple[float, float], y: tuple[float, float], margin: tuple[int, ...]
    ) -> None:
        self.width, self.height, self.x, self.y = width, height, x, y
        self.top, self.right, self.bottom, self.left = margin

    def px(self, value: float) -> float:
        low, high = self.x
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        low, high = self.y
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def axes(self, x_label: str, y_label: str, *, signed: bool, x_count: int, y_count: int) -> Markup:
        out = []
        y_ticks, x_ticks = ticks(*self.y, y_count), ticks(*self.x, x_count)
        for value in y_ticks:
            y = self.py(value)
            css = "zero" if signed and value == 0 else "grid"
            out.append(
                f'<line class="{css}" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            text = tick_text(value, _step(y_ticks), signed=signed)
            out.append(f'<text class="tick" x="{self.left - 10}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        base = self.height - self.bottom
        for value in x_ticks:
            x = self.px(value)
            if signed:
                css = "zero" if value == 0 else "grid"
                out.append(f'<line class="{css}" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{base}"/>')
            text = tick_text(value, _step(x_ticks), signed=signed)
            out.append(f'<text class="tick" x="{x:.1f}" y="{base + 20}" text-anchor="middle">{text}</text>')
        if not signed:
            out.append(f'<line class="axis" x1="{self.left}" x2="{self.width - self.right}" y1="{base}" y2="{base}"/>')
        drawn = Markup("".join(out))  # noqa: S704 - numbers and our own class names only
        middle = (self.left + self.width - self.right) / 2
        drawn += Markup('<text class="label" x="{:.0f}" y="{}" text-anchor="middle">{}</text>').format(
            middle, self.height - 8, x_label
        )
        return drawn + Markup('<text class="label" x="{}" y="{}">{}</text>').format(8, 16, y_label)


def _step(values: Sequence[float]) -> float:
    return values[1] - values[0] if len(values) > 1 else (abs(values[0]) if values and values[0] else 1.0)


def _svg(width: int, height: int, title: str, body: Markup, css: str) -> Markup:
    return Markup('<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        css, width, height, title, body
    )


def _padded(values: list[float], share: float = 0.12) -> tuple[float, float]:
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1.0) * 0.2
    return low - share * span, high + share * span


def tradeoff(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> Markup:
    """What was learned (x) against what was kept (y), each with its interval, an arrow from the base to each arm.

    Both axes are differences from the base, which is the first point and lies at (0, 0).
    """
    wide = _tradeoff(points, title, x_label, y_label, 760, 430, (44, 34, 58, 66), "wide")
    return wide + _tradeoff(points, title, x_label, y_label, 370, 400, (40, 16, 56, 46), "narrow")


def pareto(points: Sequence[Point], front: Sequence[int], *, title: str, x_label: str, y_label: str) -> Markup:
    """As `tradeoff` without the base and its arrows: the points alone, spread over the width, and a line through those
    numbered in ``front``."""
    line = sorted(front, key=lambda i: points[i].x)
    wide = _tradeoff(points, title, x_label, y_label, 760, 430, (44, 34, 58, 66), "wide", line)
    return wide + _tradeoff(points, title, x_label, y_label, 370, 400, (40, 16, 56, 46), "narrow", line)


def _tradeoff(
    points: Sequence[Point], title: str, x_label: str, y_label: str, width: int, height: int,
    margin: tuple[int, int, int, int], css: str, front: Sequence[int] | None = None,
) -> Markup:  # fmt: skip
    xs = [v for p in points for v in (p.x, *(p.x_ci or ()))]
    ys = [v for p in points for v in (p.y, *(p.y_ci or ()))]
    low, high = _padded([*ys, 0.0])
    frame = _Frame(width, height, _padded([*xs, 0.0] if front is None else xs), (low, high), margin)
    small = css == "narrow"
    body = frame.axes(x_label, y_label, signed=True, x_count=4 if small else 7, y_count=5)
    taken: list[tuple[float, float, float, float]] = []
    for p in points:
        x, y = frame.px(p.x), frame.py(p.y)
        taken.append((x - 9, y - 9, x + 9, y + 9))
        if p.x_ci is not None:
            taken.append((frame.px(p.x_ci[0]) - 2, y - 6, frame.px(p.x_ci[1]) + 2, y + 6))
        if p.y_ci is not None:
            taken.append((x - 6, frame.py(p.y_ci[1]) - 2, x + 6, frame.py(p.y_ci[0]) + 2))
    at = [(frame.px(p.x), frame.py(p.y)) for p in points]
    lines = [(at[0], end) for end in at[1:]] if front is None else list(pairwise(at[i] for i in front))
    for (ox, oy), (ex, ey) in lines:
        for i in range(2, 20):
            x, y = ox + (ex - ox) * i / 20, oy + (ey - oy) * i / 20
            taken.append((x - 2, y - 2, x + 2, y + 2))
    if front is None:
        for p, end in zip(points[1:], at[1:], strict=True):
            body += _arrow(*at[0], *end, p.style)
    elif len(front) > 1:
        body += Markup('<polyline class="front" points="{}"/>').format(
            " ".join(f"{x:.1f},{y:.1f}" for x, y in (at[i] for i in front))
        )
    for p in points:
        body += _error_bars(frame, p)
        body += marker(p.style, frame.px(p.x), frame.py(p.y), 7)
    for p in points:
        body += _place_label(frame, p, taken)
    return _svg(width, height, title, body, css)


def _arrow(x0: float, y0: float, x1: float, y1: float, style: int) -> Markup:
    length = math.hypot(x1 - x0, y1 - y0)
    if length < 34:
        return Markup("")
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    sx, sy, ex, ey = x0 + ux * 13, y0 + uy * 13, x1 - ux * 15, y1 - uy * 15
    wing = 4.5
    head = f"{ex:.1f},{ey:.1f} {ex - ux * 9 - uy * wing:.1f},{ey - uy * 9 + ux * wing:.1f} "
    head += f"{ex - ux * 9 + uy * wing:.1f},{ey - uy * 9 - ux * wing:.1f}"
    return Markup(
        '<line class="arrow a{0}" x1="{1:.1f}" y1="{2:.1f}" x2="{3:.1f}" y2="{4:.1f}"/>'
        '<polygon class="head a{0}" points="{5}"/>'
    ).format(style % len(SHAPES), sx, sy, ex - ux * 6, ey - uy * 6, head)


def _error_bars(frame: _Frame, p: Point) -> Markup:
    out = []
    x, y, cap, css = frame.px(p.x), frame.py(p.y), 5, f"bar a{p.style % len(SHAPES)}"
    if p.x_ci is not None:
        a, b = frame.px(p.x_ci[0]), frame.px(p.x_ci[1])
        d = f"M{a:.1f} {y - cap:.1f}v{2 * cap}M{b:.1f} {y - cap:.1f}v{2 * cap}M{a:.1f} {y:.1f}H{b:.1f}"
        out.append(f'<path class="{css}" d="{d}"/>')
    if p.y_ci is not None:
        a, b = frame.py(p.y_ci[0]), frame.py(p.y_ci[1])
        d = f"M{x - cap:.1f} {a:.1f}h{2 * cap}M{x - cap:.1f} {b:.1f}h{2 * cap}M{x:.1f} {a:.1f}V{b:.1f}"
        out.append(f'<path class="{css}" d="{d}"/>')
    return Markup("".join(out))  # noqa: S704 - numbers and our own class names only


def _place_label(frame: _Frame, p: Point, taken: list[tuple[float, float, float, float]]) -> Markup:
    """Beside the point, at the first of several places that covers nothing and stays inside."""
    text_width, x, y = 9.0 * len(p.label), frame.px(p.x), frame.py(p.y)
    places = [(x + 12, y - 12), (x + 12, y + 24), (x - 12 - text_width, y + 24), (x - 12 - text_width, y - 12)]
    for step in (22, 38, 54, 70, 90, 110):
        places += [(x + dx, y + dy) for dy in (-step, step + 10) for dx in (-text_width / 2, 12, -12 - text_width)]
    best = None
    for left, baseline in places:
        box = (left, baseline - 13, left + text_width, baseline + 4)
        if box[0] < frame.left or box[2] > frame.width - 2 or box[1] < 22 or box[3] > frame.height - frame.bottom:
            continue
        if all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken):
            best = box
            break
    if best is None:
        left = min(max(places[0][0], frame.left), frame.width - 2 - text_width)
        best = (left, places[0][1] - 13, left + text_width, places[0][1] + 4)
    taken.append(best)
    return Markup('<text class="name a{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
        p.style % len(SHAPES), best[0], best[3] - 4, p.label
    )


def thin_out(
    xs: Sequence[float], ys: Sequence[float], limit: int = MAX_CURVE_POINTS
) -> tuple[list[float], list[float]]:
    """At most ``limit`` points; where there are more, means of equal runs of neighbours."""
    n = len(xs)
    if n <= limit:
        return list(xs), list(ys)
    edges = [i * n // limit for i in range(limit + 1)]
    pairs = [(a, b) for a, b in pairwise(edges) if b > a]
    return [sum(xs[a:b]) / (b - a) for a, b in pairs], [sum(ys[a:b]) / (b - a) for a, b in pairs]


def curves(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Markup:
    """Training curves of the arms over one axis."""
    wide = _curves(series, title, x_label, y_label, 460, 270, "wide")
    return wide + _curves(series, title, x_label, y_label, 370, 260, "narrow")


def _curves(
    series: Sequence[Series], title: str, x_label: str, y_label: str, width: int, height: int, css: str
) -> Markup:
    drawn = [(s, *thin_out(s.xs, s.ys)) for s in series if s.xs]
    if not drawn:
        return Markup("")
    y_all = [y for _, _, ys in drawn for y in ys]
    x_all = [x for _, xs, _ in drawn for x in xs]
    first = 0.0 if 0 < min(x_all) <= 0.1 * max(x_all) else min(x_all)
    x_range = (first, max(x_all)) if max(x_all) > first else (first - 0.5, first + 0.5)
    low, high = _padded(y_all, 0.06)
    frame = _Frame(width, height, x_range, (max(0.0, low) if min(y_all) >= 0 else low, high), (34, 14, 50, 52))
    body = frame.axes(x_label, y_label, signed=False, x_count=5, y_count=4)
    for s, xs, ys in drawn:
        points = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in zip(xs, ys, strict=True))
        css_line = f"line a{s.style % len(SHAPES)}"
        if len(xs) > 1:
            body += Markup('<polyline class="{}" points="{}"><title>{}</title></polyline>').format(
                css_line, points, s.label
            )
        body += marker(s.style, frame.px(xs[-1]), frame.py(ys[-1]), 4.5)
    return _svg(width, height, title, body, css)


def stacked(parts: Sequence[tuple[str, float, str]], *, title: str) -> Markup:
    """A bar of shares: ``(label, value, css class)``."""
    total = sum(v for _, v, _ in parts)
    if total <= 0:
        return Markup("")
    out, x = Markup(""), 0.0
    for label, value, css in parts:
        w = value / total * 100
        out += Markup('<rect class="{}" x="{:.3f}" y="0" width="{:.3f}" height="10"><title>{}</title></rect>').format(
            css, x, w, label
        )
        x += w
    return Markup(
        '<svg class="stack" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(escape(title), out)

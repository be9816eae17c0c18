"""Charts, numbers, colours and the model card's facts."""

from __future__ import annotations

import math
import re
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regrow.report import charts, numbers
from regrow.report.card import model_facts
from regrow.report.items_view import right_or_wrong
from regrow.report.load import load_run
from regrow.report.mixture import mixture
from tests.report.fixture_run import make_run

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = charts.ticks(low, low + span, 5)
    assert len(found) <= 7
    assert found == sorted(set(found))
    slack = 1e-6 * max(1.0, abs(low), span)
    assert all(low - slack <= t <= low + span + slack for t in found)


def test_tick_text_has_the_decimals_of_its_step() -> None:
    assert charts.tick_text(-0.25, 0.05, signed=True) == "−0.25"
    assert charts.tick_text(0.5, 0.5) == "0.5"
    assert charts.tick_text(1000, 500, signed=True) == "+1,000"
    assert charts.tick_text(-0.0, 0.1) == "0"


arm_points = st.lists(st.tuples(st.floats(-5, 5), st.floats(-60, 60), st.floats(0, 3)), min_size=1, max_size=5)


@example([(0.0, 0.0, 5e-324)])
@given(arm_points)
def test_the_picture_keeps_everything_inside(values: list[tuple[float, float, float]]) -> None:
    points = [charts.Point("Base model", 0, 0.0, 0.0)]
    points += [
        charts.Point(f"arm {i}", i, x, y, (x - w, x + w), (y - w, y + w)) for i, (x, y, w) in enumerate(values, 1)
    ]
    svg = str(charts.tradeoff(points, title="t", x_label="x", y_label="y"))
    for drawing in re.findall(r"<svg.*?</svg>", svg):
        width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups())
        for x, y in re.findall(r'class="name[^"]*" x="([-\d.]+)" y="([-\d.]+)"', drawing):
            assert 0 <= float(x) <= width and 0 <= float(y) <= height
        for pair in re.findall(r"([-\d.]+),([-\d.]+)", " ".join(re.findall(r'points="([^"]*)"', drawing))):
            assert -1 <= float(pair[0]) <= width + 1 and -1 <= float(pair[1]) <= height + 1
        assert "nan" not in drawing and "inf" not in drawing


def test_labels_are_escaped_in_charts() -> None:
    point = charts.Point("<b>&", 1, 1.0, -1.0)
    svg = str(charts.tradeoff([charts.Point("Base", 0, 0, 0), point], title='"x', x_label="<i>", y_label="y"))
    assert "<b>" not in svg and "<i>" not in svg and 'aria-label="&#34;x"' in svg


def test_long_curves_are_thinned_to_means() -> None:
    xs, ys = [float(i) for i in range(1000)], [1.0, 3.0] * 500
    thin_x, thin_y = charts.thin_out(xs, ys, limit=100)
    assert len(thin_x) == 100
    assert math.isclose(sum(thin_y) / 100, 2.0)
    assert charts.thin_out(xs[:50], ys[:50], limit=100) == (xs[:50], ys[:50])


def test_numbers_in_words() -> None:
    assert numbers.change(-0.29, "share") == "−29.0"
    assert numbers.change(0.9, "nats") == "+0.90"
    assert numbers.change(0.0, "share") == "0.0"
    assert numbers.change(-0.00001, "share") == "0.0", "no signed zero"
    assert numbers.interval([-0.1, 0.2], "share") == "[−10.0, +20.0]"
    assert numbers.interval(None, "share") == "" and numbers.change(None, "nats") == "–"
    assert numbers.level(True, "share") == "–"
    assert (numbers.seconds(5.24), numbers.seconds(65), numbers.seconds(7300)) == ("5.2 s", "1 min 5 s", "2 h 1 min")
    assert (numbers.size(999), numbers.size(271_000_000), numbers.size(1.1e9)) == ("999 B", "271 MB", "1.1 GB")


def test_right_or_wrong_needs_a_yes_or_no() -> None:
    assert right_or_wrong({"acc": 1.0}) is True
    assert right_or_wrong({"nll": 2.0, "exact_match": 0.0}) is False
    assert right_or_wrong({"acc": 0.5}) is None
    assert right_or_wrong({"nll": 0.0}) is None and right_or_wrong(None) is None


def test_the_mixture_is_read_from_its_file(tmp_path: Path) -> None:
    blocks = mixture(load_run(make_run(tmp_path / "run", n_items=6)))
    assert [b["arm"] for b in blocks] == ["sft", "regrow"]
    tokens = blocks[1]["bars"][0]
    assert (tokens["title"], tokens["part"]) == ("Tokens", "20.0\u00a0% replay")
    assert tokens["told"] == "196,400 of your data, 49,210 of replay"
    assert blocks[1]["asked"] == "20.0\u00a0% of the tokens asked to be replay"
    assert [b["part"] for b in blocks[0]["bars"]] == ["0.0\u00a0% replay"] * 3
    assert ("Left out: your rows longer than max_length", "3") in blocks[0]["facts"]


def test_facts_for_a_model_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=60)
    facts = model_facts(run, "regrow")
    assert facts["base_model"] == "smollm2" and facts["arm"] == "Regrow"
    assert facts["replay"]["topics"] == 5
    gain = facts["gain"]["heldout (loss)"]
    assert gain["low"] < gain["value"] < gain["high"]
    assert "facts (accuracy)" in facts["forgetting"]
    plain = model_facts(run, "sft")
    assert "replay" not in plain and "summary" not in plain, "the verdict is about the other arm"


def _themes() -> dict[str, dict[str, str]]:
    css = resources.files("regrow.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (css.split(start, 1)[1].split("}", 1)[0] for start in (":root {", ':root[data-theme="dark"] {'))
    return {
        n: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", body)) for n, body in (("light", light), ("dark", dark))
    }


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_aa_contrast(theme: str) -> None:
    """WCAG 2.1, 1.4.3: at least 4.5 to 1 for text."""
    colours = _themes()[theme]
    pairs = [(c, bg) for c in ("ink", "muted") for bg in ("bg", "surface", "sunken")]
    pairs += [(c, bg) for c in ("a0", "a1", "a2", "a3", "a4", "a5", "accent") for bg in ("bg", "surface")]
    pairs += [(c, f"{c}-bg") for c in ("good", "mid", "bad")] + [(c, "surface") for c in ("good", "bad")]
    for text, ground in pairs:
        bright, dim = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (theme, text, ground)


def test_dark_by_choice_and_by_system_are_the_same() -> None:
    css = resources.files("regrow.report").joinpath("style.css").read_text(encoding="utf-8")
    by_choice = css.split(':root[data-theme="dark"] {', 1)[1].split("}", 1)[0].split()
    by_system = css.split(':root:not([data-theme="light"]) {', 1)[1].split("}", 1)[0].split()
    assert by_choice == by_system

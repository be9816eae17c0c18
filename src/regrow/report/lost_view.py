"""What was lost, in words: topics of lost items with examples, and the grown branches next to them."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from regrow.report import numbers
from regrow.report.corpus_view import clip
from regrow.report.items_view import question_of
from regrow.report.load import RunData, arm_name

MOST_TOPICS = 8
EXAMPLES = 3
MAX_CHARS = 160


def lost_topics(run: RunData) -> dict[str, Any] | None:
    """For the page: arms with their topics; None when nothing was sorted into topics."""
    found = (run.results or {}).get("lost_topics")
    if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
        return None
    arms = [_arm(run, arm, told) for arm, told in found["arms"].items() if told.get("topics") or told.get("n")]
    if not any(a["topics"] for a in arms):
        return None
    return {
        "arms": arms,
        "encoder": str(found.get("encoder")),
        "near": f"{found.get('near', 0):.2f}",
        "together": f"{found.get('together', 0):.2f}",
        "searched": numbers.integer(found.get("searched")),
        "branches": numbers.integer(found.get("branches")),
        "compared": bool(found.get("searched")),
        "sampled": found.get("searched") != found.get("branches"),
    }


def _arm(run: RunData, arm: str, told: dict[str, Any]) -> dict[str, Any]:
    by_name = {f"{suite}:{name}": item for (suite, name), item in run.items.items()}
    topics = [_topic(t, by_name) for t in told["topics"]]
    return {
        "arm": arm,
        "n": numbers.integer(told["n"]),
        "scattered": told["scattered"],
        "topics": topics[:MOST_TOPICS],
        "more": max(0, len(topics) - MOST_TOPICS),
    }


def _topic(topic: dict[str, Any], by_name: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shown = [clip(question_of(by_name[n]), MAX_CHARS) for n in topic["items"] if n in by_name][:EXAMPLES]
    corpus = topic.get("corpus")
    return {
        "terms": ", ".join(topic["terms"]),
        "n": topic["n"],
        "of": topic["of"],
        "share": numbers.share(topic["n"] / topic["of"]),
        "examples": shown,
        "covered": _covered(topic["n"], corpus),
        "tone": "" if corpus is None else ("good" if 2 * corpus["covered"] >= topic["n"] else "bad"),
        "nearest": [
            {
                "topic": clip(near["topic"] or "(no topic)", MAX_CHARS),
                "text": clip(near["text"], MAX_CHARS),
                "branch": near["branch"],
                "similarity": f"{near['similarity']:.2f}",
            }
            for near in (corpus or {}).get("nearest", [])
        ],
    }


def _covered(n: int, corpus: dict[str, Any] | None) -> str:
    if corpus is None:
        return ""
    if corpus["covered"] == 0:
        return "covered by no grown branch"
    return "covered by grown branches" if corpus["covered"] == n else f"{corpus['covered']} of {n} covered"


def lost_table(run: RunData) -> Table | None:
    """For `regrow show`: one line a topic; None when there is none."""
    from regrow.report.compare import plain_table

    found = lost_topics(run)
    if found is None:
        return None
    table = plain_table("lost by", "topic", "lost", "of near items known", "replay", "nearest branch",
                        title="what was lost, in words")  # fmt: skip
    for arm in found["arms"]:
        for k, topic in enumerate(arm["topics"]):
            near = topic["nearest"][0] if topic["nearest"] else None
            shown = f"{near['similarity']} {near['topic']}: {near['text']}" if near else ""
            cells = (arm_name(arm["arm"]) if k == 0 else "", topic["terms"], str(topic["n"]), str(topic["of"]),
                     topic["covered"], clip(shown, 70))  # fmt: skip
            table.add_row(*(Text(c) for c in cells))
        if arm["scattered"]:
            table.add_row(*(Text(c) for c in ("", "(scattered)", str(arm["scattered"]), "", "", "")))
    return table

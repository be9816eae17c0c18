"""Suite ``instructions``: does the model still write in the form it is asked for? Form is among the first things that
fine-tuning on other data takes away.

Every prompt is a subject, what to write about it, and one or two constraints of `regrow.evaluate.suites.constraints`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from regrow.evaluate.items import Item
from regrow.evaluate.suites.facts.fact import rng_for

SUITE = "instructions"
METRIC = "followed"
MAX_NEW_TOKENS = 160
"""Longest answer. Every prompt asks for less; an answer that is cut here is judged as it stands."""
PAIRS = 0.25
"""Share of the items with two constraints."""
COMBINED = "two at once"
"""Domain of items with two constraints; the others' domain is the kind of their constraint."""

SUBJECTS = tuple(
    """autumn rain;a lighthouse;learning to swim;a loaf of bread;the night train;an old clock;a school garden;
    the moon;a lost umbrella;morning coffee;a paper map;the sound of bells;a winter coat;moving house;a stone bridge;
    honey bees;a long queue;the first day at work;a bicycle tour;a library card;the village market;a kite;
    a broken window;tides;a chess game;a pot of soup;the smell of pine trees;a ferry;an attic;a thunderstorm;
    a pair of boots;a letter from a friend;hot chocolate;a wooden boat;the last bus;a sleeping cat;an orchard;
    a campfire;a violin lesson;the desert at noon""".replace("\n    ", "").split(";")
)
WORDS = ("quiet", "bright", "small", "early", "warm", "heavy", "yellow", "slow")
AVOIDED = ("the", "and", "very", "is", "of", "it")
ENDINGS = ("And that is all.", "See you tomorrow.", "That is how I see it.", "Thank you for reading.")
STARTS = ("To begin with,", "Once again", "In short:", "My answer:")
KEYS = (("name", "colour"), ("title", "text"), ("place", "season", "mood"), ("who", "what", "when"))
OPTIONS = (("yes", "no", "maybe"), ("hot", "cold", "neither"), ("indoors", "outdoors", "both"))
TASKS = (
    "Write a short text about {}.",
    "Tell me something about {}.",
    "Describe {}.",
    "Say what comes to mind about {}.",
)

Made = tuple[dict[str, Any], str]
"""A constraint and the sentence that asks for it."""


def _words_at_most(rng: random.Random) -> Made:
    n = rng.choice((20, 30, 40, 50))
    return {"n": n}, f"Use at most {n} words."


def _words_at_least(rng: random.Random) -> Made:
    n = rng.choice((25, 35, 45))
    return {"n": n}, f"Use at least {n} words."


def _sentences(rng: random.Random) -> Made:
    n = rng.choice((2, 3, 4))
    return {"n": n}, f"Write exactly {n} sentences."


def _paragraphs(rng: random.Random) -> Made:
    n = rng.choice((2, 3))
    return {"n": n}, f"Write exactly {n} short paragraphs with a blank line between them."


def _bullets(rng: random.Random) -> Made:
    n = rng.choice((2, 3, 4, 5))
    return {"n": n}, f"Answer with exactly {n} bullet points, each on a line that begins with a hyphen and a space."


def _numbered(rng: random.Random) -> Made:
    n = rng.choice((2, 3, 4, 5))
    return {"n": n}, f"Answer with a list numbered from 1 to {n}, one line each."


def _json_keys(rng: random.Random) -> Made:
    keys = list(rng.choice(KEYS))
    named = ", ".join(f'"{k}"' for k in keys)
    return {"keys": keys}, f"Answer with nothing but one valid JSON object that has exactly the keys {named}."


def _starts_with(rng: random.Random) -> Made:
    phrase = rng.choice(STARTS)
    return {"phrase": phrase}, f'Begin your answer with the exact words "{phrase}"'


def _ends_with(rng: random.Random) -> Made:
    phrase = rng.choice(ENDINGS)
    return {"phrase": phrase}, f'End your answer with the exact words "{phrase}" and write nothing after them.'


def _contains(rng: random.Random) -> Made:
    word, n = rng.choice(WORDS), rng.choice((1, 2, 3))
    times = {1: "once", 2: "twice", 3: "three times"}[n]
    return {"word": word, "n": n}, f'Use the word "{word}" at least {times}.'


def _avoids(rng: random.Random) -> Made:
    word = rng.choice(AVOIDED)
    return {"word": word}, f'Do not use the word "{word}" anywhere.'


def _slots(rng: random.Random) -> Made:
    n = rng.choice((1, 2, 3))
    places = "one place" if n == 1 else f"{n} places"
    return {"n": n}, f"Leave at least {places} to fill in, written in square brackets like [name]."


def _one_of(rng: random.Random) -> Made:
    options = list(rng.choice(OPTIONS))
    named = ", ".join(f'"{o}"' for o in options)
    return {"options": options}, f"Whatever you think of it, answer with exactly one of {named} and nothing else."


def _plain(text: str) -> Callable[[random.Random], Made]:
    return lambda rng: ({}, text)


MAKERS: dict[str, Callable[[random.Random], Made]] = {
    "words_at_most": _words_at_most,
    "words_at_least": _words_at_least,
    "sentences": _sentences,
    "paragraphs": _paragraphs,
    "bullets": _bullets,
    "numbered": _numbered,
    "lower_case": _plain("Write everything in lower case, without a single capital letter."),
    "upper_case": _plain("Write everything in capital letters."),
    "json_keys": _json_keys,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "contains": _contains,
    "avoids": _avoids,
    "no_comma": _plain("Do not use any commas."),
    "no_digit": _plain("Do not use any digits."),
    "quoted": _plain("Put your whole answer in double quotation marks and use none inside."),
    "title": _plain('Begin with a title on a line of its own that starts with "# ", and put the text below it.'),
    "slots": _slots,
    "one_of": _one_of,
    "asks": _plain("End your answer with a question."),
}
"""Kind of constraint -> its arguments and its wording, drawn."""

SHAPES = ("words_at_most", "sentences", "paragraphs", "bullets", "numbered")
MANNERS = ("lower_case", "upper_case", "contains", "avoids", "no_comma")
"""Any of `SHAPES` can be followed together with any of these."""


def instruction_items(n: int, seed: int) -> list[Item]:
    """``n`` items, the same for the same seed; all kinds equally often, three in four with one constraint.

    No two items have the same prompt. With the subjects and arguments there are, well over a thousand different
    prompts can be drawn.

    Raises:
        ValueError: More items than different prompts were found.
    """
    rng = rng_for(seed, SUITE)
    kinds: list[str] = []
    subjects: list[str] = []
    out: list[Item] = []
    asked: set[str] = set()
    for attempt in range(20 * n):
        if len(out) == n:
            break
        if not subjects:
            subjects = rng.sample(SUBJECTS, len(SUBJECTS))
        subject, task = subjects.pop(), rng.choice(TASKS)
        if rng.random() < PAIRS:
            chosen, domain = [rng.choice(SHAPES), rng.choice(MANNERS)], COMBINED
        else:
            if not kinds:
                kinds = rng.sample(list(MAKERS), len(MAKERS))
            chosen = [kinds.pop()]
            domain = chosen[0]
        made = [(kind, *MAKERS[kind](rng)) for kind in chosen]
        prompt = " ".join([task.format(subject), *(said for _, _, said in made)])
        if prompt in asked:
            continue
        asked.add(prompt)
        constraints = [{"kind": kind, **arguments} for kind, arguments, _ in made]
        meta = {"generate": {"max_new_tokens": MAX_NEW_TOKENS, "metric": METRIC}, "constraints": constraints}
        name = f"{'+'.join(chosen)}/{attempt}"
        out.append(Item(name, SUITE, domain, "written", [{"role": "user", "content": prompt}], meta=meta))
    if len(out) < n:
        raise ValueError(f"{n} different instructions were asked for, {len(out)} were found")
    return out

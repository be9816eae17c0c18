"""The topics of the trees: the user's, the built-in list, or asked from the model itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from regrow.engines.base import Engine, Request, SampleParams
from regrow.errors import EngineError, RecipeError
from regrow.grow.config import GrowConfig
from regrow.grow.plan import node_seed
from regrow.grow.shapes import apportion

DEFAULT_TOPICS = (
    "world history",
    "physics and astronomy",
    "chemistry and materials",
    "biology and living things",
    "medicine and health",
    "mathematics and logic",
    "statistics and data",
    "computer programming",
    "computers and the internet",
    "engineering and how things work",
    "geography and places",
    "the earth, weather and climate",
    "economics and money",
    "business and work",
    "law and government",
    "psychology and behaviour",
    "philosophy and ethics",
    "religion and mythology",
    "literature and books",
    "language and writing",
    "music and film",
    "art and architecture",
    "food and cooking",
    "sports and games",
    "travel and culture",
    "education and learning",
    "family and everyday life",
    "animals, plants and nature",
)
"""Broad fields of knowledge; our list. They spread the roots, the model's own questions do the rest."""

ANY_TOPIC = "*"
"""Stands for no topic: the root prompt then names all of the world's knowledge."""

_SAME_TOPIC = 0.8
_ASK_ROUNDS = 6
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s*")


class TextEncoder(Protocol):
    """What Tree Generation needs of a sentence encoder; `regrow.models.embed.Encoder` is one."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """``(len(texts), d)`` float32, rows of length 1."""
        ...


def read_topics(path: str | Path) -> list[str]:
    """One topic a line; blank lines and ``#`` comments are skipped, repeats dropped.

    Raises:
        RecipeError: The file cannot be read or holds no topic.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the topics: {error}", where="grow.topics_file", hint="One topic a line, UTF-8."
        ) from error
    topics = list(dict.fromkeys(t for t in (line.partition("#")[0].strip() for line in lines) if t))
    if not topics:
        raise RecipeError(f"{path} holds no topic", where="grow.topics_file", hint="Write one topic a line.")
    return topics


def configured_topics(config: GrowConfig) -> list[str]:
    """The topics a configuration names, without asking a model. Empty when they are to be asked.

    Raises:
        RecipeError: The topics and the quota do not name the same topics, or the file is bad.
    """
    if config.ask_topics:
        return []
    if config.topics_file:
        topics = read_topics(config.topics_file)
    elif config.topics:
        topics = list(dict.fromkeys(t.strip() for t in config.topics if t.strip()))
        if not topics:
            raise RecipeError("every topic is empty", where="grow.topics", hint="Name a topic, or leave the key out.")
    elif config.quota:
        topics = list(config.quota)
    else:
        topics = list(DEFAULT_TOPICS)
    unknown, missing = sorted(set(config.quota) - set(topics)), sorted(set(topics) - set(config.quota))
    if config.quota and (unknown or missing):
        said = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"without a share: {', '.join(missing)}"] * bool(
            missing
        )
        raise RecipeError(
            f"the quota and the topics differ ({'; '.join(said)})", where="grow.quota", hint="Give each topic a share."
        )
    return topics


def quotas(config: GrowConfig, topics: Sequence[str], dialogues: int) -> list[int]:
    """Dialogues wanted from each topic: ``dialogues`` split by the configured shares, equal ones by default."""
    return apportion(dialogues, [config.quota[t] if config.quota else 1.0 for t in topics])


def parse_topics(text: str) -> list[str]:
    """Topics out of a model's list: list marks, explanations after a colon or dash, and long lines are cut away."""
    found = []
    for line in text.splitlines():
        if not _LIST_MARK.match(line):
            continue
        name = re.split(r"\s[-–—]\s|[:(]", _LIST_MARK.sub("", line))[0].strip(" *_`\"'.,;")
        if 2 < len(name) <= 60 and len(name.split()) <= 7:
            found.append(name[0].lower() + name[1:] if name[1:2].islower() else name)
    return found


def distinct(topics: Sequence[str], encoder: TextEncoder | None, limit: int) -> list[str]:
    """The first ``limit`` topics that are neither the same text nor near in meaning (cosine over 0.8) to an earlier
    one."""
    unique = list({t.casefold(): t for t in reversed(topics)}.values())[::-1]
    if encoder is None or len(unique) < 2:
        return unique[:limit]
    vectors = encoder.encode(unique)
    chosen: list[int] = []
    for i in range(len(unique)):
        if len(chosen) == limit:
            break
        if not chosen or float(np.max(vectors[chosen] @ vectors[i])) <= _SAME_TOPIC:
            chosen.append(i)
    return [unique[i] for i in chosen]


def ask_topics(
    engine: Engine,
    prompt_ids: Sequence[int],
    stop_ids: tuple[int, ...],
    n: int,
    *,
    seed: int,
    encoder: TextEncoder | None,
) -> list[str]:
    """Ask the model what it knows: sample lists of fields until ``n`` distinct topics are found.

    Args:
        prompt_ids: The rendered question for a list of fields, up to where the assistant begins.
        stop_ids: Tokens that end the assistant's turn.

    Raises:
        EngineError: The model's lists held fewer than two topics.
    """
    params = SampleParams(max_new_tokens=400, temperature=1.0, top_p=0.95, stop_token_ids=stop_ids)
    found: list[str] = []
    for attempt in range(_ASK_ROUNDS):
        request = Request("topics", tuple(prompt_ids), 8, node_seed(seed, "topics", "ask", attempt), params)
        for _, completions in engine.sample([request]):
            found += [t for c in completions for t in parse_topics(c.text)]
        topics = distinct(found, encoder, n)
        if len(topics) >= n:
            return topics
    if len(topics) < 2:
        raise EngineError(
            f"the model named {len(topics)} usable topics when asked for {n}",
            where="grow.ask_topics",
            hint="Give grow.topics or grow.topics_file, or leave all three out for the built-in list.",
        )
    return topics


ASK_PROMPT = (
    "List {n} different fields of knowledge, from science and history to everyday life. "
    "One short name a line, numbered."
)

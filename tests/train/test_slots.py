"""Replay slots dealt anew: your rows stand where they stood, and the tokens of replay are those of the slots."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from regrow.mix.replay import interleave
from regrow.train.slots import SlotSampler

TOPICS = ["a", "b", "c"]


def sampler(
    *,
    n: int = 240,
    shares: dict[str, float] | None = None,
    part_from: int | None = None,
    long: str = "",
    seed: int = 1,
) -> SlotSampler:
    """Every third pack is yours; the others are replay of three topics; packs from ``part_from`` on are part 1."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 120, n).tolist()
    yours = [i for i in range(n) if i % 3 == 0]
    replay = [i for i in range(n) if i % 3]
    topics = {i: TOPICS[int(rng.integers(3))] for i in replay}
    parts = [0] * n if part_from is None else [int(i >= part_from) for i in range(n)]
    for i in replay:
        if topics[i] == long:
            tokens[i] *= 4
    yours, slots = [i for i in yours if not parts[i]], [i for i in replay if not parts[i]]
    shares = shares or dict.fromkeys(TOPICS, 1 / 3)
    return SlotSampler(yours, slots, topics, tokens, parts, shares, seed)


def flat(draws: Iterable[tuple[int, ...]]) -> list[int]:
    return [pack for draw in draws for pack in draw]


def count(found: SlotSampler, draws: Iterable[int]) -> dict[str, int]:
    tokens = dict.fromkeys(TOPICS, 0)
    for pack in draws:
        if pack in found._topic:
            tokens[found._topic[pack]] += found._tokens[pack]
    return tokens


@pytest.mark.parametrize("long", ["", "b"], ids=["alike", "one-topic-four-times-as-long"])
def test_replay_tokens_are_those_of_the_slots_at_any_moment(long):
    shares = {"a": 0.1, "b": 0.8, "c": 0.1}
    found = sampler(shares=shares, long=long)
    plan = interleave([found._tokens[p] for p in found._yours], found._sizes)
    longest, slots, drawn = max(found._tokens), 0, 0
    for slot, draw in zip(plan, found, strict=True):
        if slot.replay:
            slots += found._sizes[slot.index]
            drawn += sum(found._tokens[pack] for pack in draw)
            assert abs(drawn - slots) <= longest / 2
    assert drawn == sum(found.realised(0, len(found)).values())


def test_your_rows_come_where_the_mix_had_them():
    found = sampler(shares={"a": 1.0, "b": 0.0, "c": 0.0})
    plan = interleave([found._tokens[p] for p in found._yours], found._sizes)
    drawn = list(found)
    assert flat(draw for slot, draw in zip(plan, drawn, strict=True) if not slot.replay) == found._yours
    assert {found._topic[p] for p in flat(drawn) if p in found._topic} == {"a"}


def test_shares_of_the_replay_are_those_asked_for():
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    found = sampler(shares=shares)
    tokens = count(found, flat(found))
    assert tokens == found.realised(0, len(found))
    total = sum(tokens.values())
    for topic, share in shares.items():
        assert abs(tokens[topic] - share * total) <= 2 * max(found._tokens)


def test_with_the_first_shares_all_is_used_once_and_none_twice():
    """Fixed-ratio replay is the special case in which nothing is forgotten."""
    one = sampler()
    tokens = count(one, one._topic)
    found = sampler(shares={t: n / sum(tokens.values()) for t, n in tokens.items()})
    drawn = [p for p in flat(found) if p in found._topic]
    assert len(set(drawn)) == len(drawn) >= 0.97 * len(found._topic)


def test_what_was_not_seen_comes_before_what_was():
    found = sampler(shares={"a": 1.0, "b": 0.0, "c": 0.0})
    mine = [p for p, t in found._topic.items() if t == "a"]
    drawn = [p for p in flat(found) if p in found._topic]
    assert sorted(drawn[: len(mine)]) == mine and len(drawn) > len(mine)
    left, fresh = found.outlook(len(found))
    assert fresh["a"] == 0 and fresh["b"] == sum(found._tokens[p] for p, t in found._topic.items() if t == "b")
    assert left <= max(found._tokens) / 2


def test_a_part_takes_part_once_it_has_joined_and_before_anything_is_repeated():
    found = sampler(shares={"a": 1.0, "b": 0.0, "c": 0.0}, part_from=150)
    drawn = []
    for i, draw in enumerate(found):
        drawn.append(draw)
        if i == 59:
            found.join(1)
    joined = {p for p, t in found._topic.items() if t == "a" and found._parts[p]}
    before, later = flat(drawn[:60]), [p for p in flat(drawn[60:]) if p in found._topic]
    assert joined and not joined & set(before)
    first_repeat = next(k for k, p in enumerate(later) if p in before or p in later[:k])
    assert joined <= set(later[:first_repeat])


def test_a_restarted_sampler_draws_what_the_first_would_have_drawn():
    whole, wanted = sampler(part_from=180), []
    for epoch in range(2):
        whole.set_epoch(epoch)
        for i, draw in enumerate(whole):
            wanted.append(draw)
            if i == 40 + epoch:
                whole.set_shares({"a": 0.7 - 0.6 * epoch, "b": 0.2, "c": 0.1 + 0.6 * epoch})
            if i == 100:
                whole.join(1)
    again = sampler(part_from=180)
    again.changes, again.joins = list(whole.changes), dict(whole.joins)
    got = []
    for epoch in range(2):
        again.set_epoch(epoch)
        got += list(again)
    assert got == wanted
    assert list(sampler(part_from=180)) != wanted[: len(whole)]

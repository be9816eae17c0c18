"""Mixtures reach the batch: tokens are counted draw by draw, and the order survives a restart."""

from __future__ import annotations

import numpy as np
import pytest

from regrow.errors import RecipeError
from regrow.mix.mixtures import MixtureSection, make_mixture
from regrow.train.mixture import MixtureSampler, hold_out


def packs(n: int = 400) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(0)
    domains = [str(d) for d in rng.choice(["law", "code", "rest"], n, p=[0.2, 0.3, 0.5])]
    return domains, [int(t) for t in rng.integers(5, 120, n)]


def test_asked_and_realised_differ_by_no_more_than_a_pack_at_any_moment():
    domains, tokens = packs()
    asked = {"law": 0.6, "code": 0.1, "rest": 0.3}
    order = list(MixtureSampler(domains, tokens, asked, seed=1))
    assert len(order) == len(tokens)
    counted, total = dict.fromkeys(asked, 0), 0
    for pack in order:
        counted[domains[pack]] += tokens[pack]
        total += tokens[pack]
        for domain, share in asked.items():
            assert abs(counted[domain] - share * total) <= 2 * max(tokens)
    assert counted["law"] / total == pytest.approx(0.6, abs=0.01)


def test_a_change_of_shares_acts_from_the_next_draw_on():
    domains, tokens = packs()
    sampler = MixtureSampler(domains, tokens, {"law": 0.0, "code": 0.5, "rest": 0.5}, seed=1)
    drawn = []
    for i, pack in enumerate(sampler):
        drawn.append(pack)
        if i == 99:
            sampler.set_shares({"law": 1.0, "code": 0.0, "rest": 0.0})
    assert "law" not in {domains[p] for p in drawn[:100]}
    assert {domains[p] for p in drawn[100:]} == {"law"}
    assert sampler.realised(100, 400)["law"] == sum(tokens[p] for p in drawn[100:])


def test_every_pack_of_a_domain_is_seen_before_one_is_seen_again():
    domains, tokens = packs()
    sampler = MixtureSampler(domains, tokens, {"law": 1.0, "code": 0.0, "rest": 0.0}, seed=1)
    order = list(sampler)
    law = [i for i, d in enumerate(domains) if d == "law"]
    assert order[: len(law)] == law, "the first pass is in the order of the mix"
    second = order[len(law) : 2 * len(law)]
    assert sorted(second) == law and second != law


def test_a_restarted_sampler_draws_what_the_first_would_have_drawn():
    domains, tokens = packs()
    start = {"law": 0.2, "code": 0.3, "rest": 0.5}
    whole = MixtureSampler(domains, tokens, start, seed=1)
    wanted = []
    for epoch in range(2):
        whole.set_epoch(epoch)
        for i, pack in enumerate(whole):
            wanted.append(pack)
            if i % 150 == 149:
                whole.set_shares({"law": 0.1 + 0.2 * epoch, "code": 0.5, "rest": 0.4 - 0.2 * epoch})
    again = MixtureSampler(domains, tokens, start, seed=1)
    again.changes = list(whole.changes)
    got = []
    for epoch in range(2):
        again.set_epoch(epoch)
        got += list(again)
    assert got == wanted


def test_held_out_rows_are_few_and_of_every_domain():
    domains, _ = packs()
    out = hold_out(domains, 8, seed=3)
    assert set(out) == {"law", "code", "rest"} and all(len(v) == 8 for v in out.values())
    assert all(domains[i] == d for d, rows in out.items() for i in rows)
    assert out == hold_out(domains, 8, seed=3) != hold_out(domains, 8, seed=4)
    assert {d: len(v) for d, v in hold_out(["a"] * 4 + ["b"] * 9, 8, seed=0).items()} == {"a": 1, "b": 2}
    with pytest.raises(RecipeError, match="'b' has 3 rows"):
        hold_out(["a"] * 4 + ["b"] * 3, 8, seed=0)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"controller": "constant", "weights": {"law": 1}}, "'code' has no entry"),
        ({"controller": "fostering", "reference": {"art": 1}}, "'art' is not a domain"),
        ({"controller": "expansion", "target": "art"}, "'art' is not a domain"),
        ({"controller": "skill-it", "graph": {"law": {"code": 1}}}, "'code' has no entry"),
    ],
)
def test_domains_that_do_not_fit_are_named(section, said):
    with pytest.raises(RecipeError, match=said):
        make_mixture(MixtureSection(**section), {"law": 0.5, "code": 0.5})


@pytest.mark.parametrize("controller", ["constant", "expansion", "skill-it"])
def test_incomplete_sections_are_refused(controller):
    with pytest.raises(ValueError, match="needs"):
        MixtureSection(controller=controller)


def test_each_key_reaches_its_controller():
    shares = {"law": 0.25, "code": 0.75}
    losses = [{"law": 2.0, "code": 1.0}, {"law": 2.0, "code": 1.0}, {"law": 2.0, "code": 1.5}]

    def after(**section):
        mixture = make_mixture(MixtureSection(**section), shares)
        for measured in losses:
            mixture.update(measured)
        return mixture.weights()

    assert after(controller="uniform") == {"law": 0.5, "code": 0.5}
    assert after(controller="inverse") == {"law": 0.75, "code": 0.25}
    assert after(controller="constant", weights={"law": 9, "code": 1}) == {"law": 0.9, "code": 0.1}
    for base, changed in (
        (
            {"controller": "fostering", "reference": {"law": 1.0}},
            [{"sigma": 0.1}, {"reference": {"law": 1.5}}, {"rule": "code"}],
        ),
        (
            {"controller": "expansion", "target": "law"},
            [{"delta": 0.05}, {"epsilon": 0.0}, {"max_share": 0.3}, {"target": "code"}, {"reference": {"law": 2.0}}],
        ),
        (
            {"controller": "skill-it", "graph": {"law": {}, "code": {"law": 0.3}}},
            [{"eta": 0.1}, {"window": 1}, {"target": "law"}, {"weights": {"law": 1, "code": 9}}],
        ),
    ):
        usual = after(**base)
        for change in changed:
            assert after(**{**base, **change}) != usual, change

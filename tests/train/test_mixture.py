"""Mixtures reach the batch: tokens are counted draw by draw, and the order survives a restart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from regrow.errors import RecipeError
from regrow.mix.mixtures import MixtureSection, make_mixture
from regrow.train import batches
from regrow.train.config import TrainConfig
from regrow.train.mixture import MixtureSampler, hold_out
from regrow.train.stage import train
from tests.train.helpers import log_lines, token_row, write_mix


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
            [{"eta": 0.1}, {"window": 1}, {"looks": 3}, {"target": "law"}, {"weights": {"law": 1, "code": 9}}],
        ),
    ):
        usual = after(**base)
        for change in changed:
            assert after(**{**base, **change}) != usual, change


def mix_of_three(n: int = 60) -> list[dict]:
    """Rows of three domains; every token of a row says which: ids 10-99, 100-199, 200-299."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        number = int(rng.choice(3, p=[0.6, 0.2, 0.2]))
        ids = rng.integers(10 + 100 * number, 99 + 100 * number, int(rng.integers(8, 30))).tolist()
        row = token_row(ids, [0.0] + [1.0] * (len(ids) - 1), "replay" if number else "domain", f"r{i}")
        rows.append(row | {"domain": ("law", "rivers", "birds")[number]})
    return rows


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """Token ids of all batches of documents, in the order they were collated; measurements are left out."""
    ids: list[int] = []
    collate = batches.Collator.__call__

    def record(self, packs):
        batch = collate(self, packs)
        ids.extend(t for t in batch["input_ids"].flatten().tolist() if t >= 10)
        return batch

    monkeypatch.setattr(batches.Collator, "__call__", record)
    return ids


@pytest.mark.parametrize("packing", [False, True])
def test_the_shares_reach_the_batch(tiny_model_dir, tmp_path, seen, packing):
    mix = write_mix(tmp_path / "mix", mix_of_three())
    shares = {"law": 0.2, "rivers": 0.7, "birds": 0.1}
    cfg = TrainConfig(
        max_steps=20, per_device_train_batch_size=2, logging_steps=5, packing=packing, max_length=64,
        mixture={"controller": "constant", "weights": shares, "update_steps": 5, "holdout_rows": 2},
    )  # fmt: skip
    train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0)
    counted = np.bincount(np.array(seen) // 100, minlength=3) / len(seen)
    assert counted == pytest.approx(list(shares.values()), abs=0.06)
    measured = [line for line in log_lines(tmp_path / "out") if "heldout/law" in line]
    assert [line["step"] for line in measured] == [5, 10, 15, 20]
    assert measured[0]["asked/rivers"] == 0.7
    assert measured[-1]["mix/rivers"] == pytest.approx(0.7, abs=0.15)


def test_held_out_rows_are_measured_and_never_trained_on(tiny_model_dir, tmp_path, seen):
    rows = mix_of_three()
    mix = write_mix(tmp_path / "mix", rows)
    mixture = {"controller": "uniform", "update_steps": 7, "holdout_rows": 3}
    cfg = TrainConfig(max_steps=60, per_device_train_batch_size=4, logging_steps=7, mixture=mixture)
    train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0)
    out = hold_out([r["domain"] for r in rows], 3, seed=0)
    text = " ".join(map(str, seen))
    for i, row in enumerate(rows):
        found = " ".join(map(str, row["input_ids"])) in text
        assert found != any(i in held for held in out.values()), row["id"]
    losses = [line["heldout/law"] for line in log_lines(tmp_path / "out") if "heldout/law" in line]
    assert losses[-1] < losses[0]


def test_your_rows_against_replay(tiny_model_dir, tmp_path, seen):
    mix = write_mix(tmp_path / "mix", mix_of_three())
    mixture = {"controller": "constant", "by": "source", "weights": {"domain": 1, "replay": 9}}
    cfg = TrainConfig(max_steps=20, per_device_train_batch_size=2, mixture=mixture)
    train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0)
    assert np.mean(np.array(seen) < 100) == pytest.approx(0.1, abs=0.05)


def test_a_controller_moves_the_mixture_while_it_trains(tiny_model_dir, tmp_path, seen):
    """The domain that is learned last keeps the highest loss, and gets more and more of the tokens."""
    mix = write_mix(tmp_path / "mix", mix_of_three())
    mixture = {"controller": "fostering", "rule": "code", "update_steps": 4, "holdout_rows": 3}
    cfg = TrainConfig(
        max_steps=24, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=4, mixture=mixture
    )
    train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0)
    lines = [line for line in log_lines(tmp_path / "out") if "asked/law" in line]
    asked = [[line[f"asked/{d}"] for d in ("law", "rivers", "birds")] for line in lines]
    assert asked[0] != asked[-1]
    for before, after in pairwise(lines[1:]):
        worst = max(("law", "rivers", "birds"), key=lambda d: before[f"heldout/{d}"])
        assert after[f"asked/{worst}"] > before[f"asked/{worst}"]
    for line in lines[2:]:  # a loader that reads ahead has drawn the first pack of an interval under the old shares
        for d in ("law", "rivers", "birds"):
            assert line[f"mix/{d}"] == pytest.approx(line[f"asked/{d}"], abs=0.12), "what is asked for is drawn"

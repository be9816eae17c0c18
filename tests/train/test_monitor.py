"""The monitor: loss and KL on rows that are never trained on, and the stability gap of their curves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

from regrow.errors import RecipeError, RunError
from regrow.mix.mixtures import WATCHED
from regrow.mix.skill_it import SkillIt
from regrow.train import pause
from regrow.train.config import TrainConfig
from regrow.train.monitor import MONITOR, Gap, Monitor, stability_gap
from regrow.train.stage import train
from tests.train.helpers import log_lines, random_rows, token_row, write_mix


@pytest.mark.parametrize(
    ("losses", "gap"),
    [
        ([2.0, 2.5, 3.0, 2.2, 1.9, 1.8], Gap(1.0, 20, 40, pytest.approx(-0.2))),
        ([2.0, 1.9, 1.8], Gap(0.0, 0, 0, pytest.approx(-0.2))),
        ([2.0, 2.4, 2.3, 2.1], Gap(pytest.approx(0.4), 10, None, pytest.approx(0.1))),
        ([2.0, 2.1, 1.9, 2.6, 2.0], Gap(pytest.approx(0.6), 30, 40, 0.0)),
        ([2.0, 2.5, 2.5, 2.0], Gap(0.5, 10, 30, 0.0)),
        ([2.0], Gap(0.0, 0, 0, 0.0)),
    ],
    ids=["dips-and-recovers", "never-dips", "does-not-recover", "returns-before-the-deepest", "flat-bottom", "one"],
)
def test_dip_and_recovery_of_known_curves(losses, gap):
    assert stability_gap([10 * i for i in range(len(losses))], losses) == gap


def watched_rows() -> list[dict]:
    rows = []
    for i, row in enumerate(random_rows(6, seed=9)):
        rows.append(row | {"source": ("replay", "domain")[i % 2], "domain": ("rivers", "law")[i % 2], "id": f"w{i}"})
    return rows


def layout(tmp_path: Path, rows: list[dict] | None = None) -> Path:
    mix = write_mix(tmp_path / "mix", rows or random_rows(24, seed=1))
    write_mix(tmp_path / "beside", watched_rows())
    (tmp_path / "beside" / "train.parquet").rename(mix / WATCHED)
    return mix


def reference(model: Path, rows: list[dict]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Log-probabilities (n, V), targets and weights of the trained tokens, by plain transformers."""
    net = LlamaForCausalLM.from_pretrained(model).eval()
    out = []
    for row in rows:
        ids, weights = torch.tensor(row["input_ids"]), torch.tensor(row["loss_weights"])
        with torch.no_grad():
            logprobs = net(ids[None]).logits[0].double().log_softmax(-1)
        at = (weights > 0).nonzero().squeeze(-1)
        at = at[at > 0]
        out.append((logprobs[at - 1], ids[at], weights[at].double()))
    return out


def test_losses_and_kl_are_those_of_plain_transformers(tiny_model_dir, tmp_path):
    mix = layout(tmp_path)
    cfg = TrainConfig(max_steps=5, per_device_train_batch_size=2, learning_rate=2e-3, logging_steps=1,
                      mixture={"update_steps": 2})  # fmt: skip
    done = train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0)
    history = [json.loads(line) for line in (tmp_path / "out" / MONITOR).read_text().splitlines()]
    assert [line["step"] for line in history] == [0, 2, 4, 5]
    assert [line["step"] for line in log_lines(tmp_path / "out") if "heldout/law" in line] == [1, 2, 4, 5]
    rows = watched_rows()
    for domain in ("rivers", "law"):
        mine = [r for r in rows if r["domain"] == domain]
        before, after = (reference(m, mine) for m in (tiny_model_dir, done.model_path))
        weight = sum(float(w.sum()) for _, _, w in before)

        def loss(found, weight=weight):
            return sum(float((-p.gather(1, t[:, None])[:, 0] * w).sum()) for p, t, w in found) / weight

        assert history[0][f"heldout/{domain}"] == pytest.approx(loss(before), rel=1e-5)
        assert history[0][f"heldout_kl/{domain}"] == 0
        assert history[-1][f"heldout/{domain}"] == pytest.approx(loss(after), rel=1e-5)
        whole = sum(
            float(((p.exp() * (p - q)).sum(-1) * w).sum()) for (p, _, w), (q, _, _) in zip(before, after, strict=True)
        )
        kl = history[-1][f"heldout_kl/{domain}"]
        assert 0.1 * whole / weight < kl <= whole / weight * (1 + 1e-6), "64 of 600 tokens and a rest: a lower bound"
    assert done.gaps["law"] == json.loads((tmp_path / "out" / "train.json").read_text())["gaps"]["law"]
    curve = [line["heldout/law"] for line in history]
    assert done.gaps["law"]["dip"] == max(0.0, max(curve) - curve[0])
    assert done.gaps["law"]["end"] == curve[-1] - curve[0]


def test_a_training_is_measured_about_ten_times_unless_it_is_long(tiny_model_dir, tmp_path):
    cfg = TrainConfig(max_steps=21, per_device_train_batch_size=1)
    train(tiny_model_dir, layout(tmp_path), cfg, tmp_path / "out", seed=0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / MONITOR).read_text().splitlines()]
    assert steps == [*range(0, 21, 3), 21]
    for length, every in ((3, 1), (15, 2), (491, 50), (100_000, 50)):
        monitor = Monitor(None, None, tmp_path / "unused")
        monitor.settle(length)
        assert monitor.every == every


@pytest.mark.parametrize(
    ("every", "measured", "stops"), [(None, 3, [6, 12, 18]), (7, 3, [9, 18]), (4, 4, [4, 8, 12, 16]), (1, 9, [9, 18])]
)
def test_a_training_stops_for_more_at_whole_measurements(every, measured, stops, monkeypatch):
    monkeypatch.setattr(pause, "where_it_stands", lambda trainer: SimpleNamespace(missing={"law": 500.0}))
    trainers = [
        SimpleNamespace(state=SimpleNamespace(global_step=s, max_steps=20), monitor=SimpleNamespace(every=measured))
        for s in range(1, 21)
    ]
    assert [t.state.global_step for t in trainers if pause.Stop(every, 0, 500).reached(t)] == stops
    assert not any(pause.Stop(every, 0, 501).reached(t) for t in trainers)
    with pytest.raises(RunError, match="only a training with replay"):
        pause.Stop(every, 0, 500).reached(SimpleNamespace(monitor=None))


def test_measuring_changes_nothing(tiny_model_dir, tmp_path):
    from tests.train.helpers import largest_difference

    cfg = TrainConfig(max_steps=4, per_device_train_batch_size=2, mixture={"update_steps": 2}, method="lora",
                      lora={"r": 4, "lora_dropout": 0.2}, merge_adapter=True)  # fmt: skip
    plain = train(tiny_model_dir, write_mix(tmp_path / "plain", random_rows(24, seed=1)), cfg, tmp_path / "a", seed=0)
    watched = train(tiny_model_dir, layout(tmp_path), cfg, tmp_path / "b", seed=0)
    assert not plain.gaps and set(watched.gaps) == {"rivers", "law"}
    assert largest_difference(plain.model_path, watched.model_path) == 0


def test_a_mixture_has_gaps_too(tiny_model_dir, tmp_path):
    mix = write_mix(tmp_path / "mix", random_rows(24, seed=1))
    cfg = TrainConfig(max_steps=4, per_device_train_batch_size=2,
                      mixture={"controller": "uniform", "by": "source", "update_steps": 2})  # fmt: skip
    assert set(train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0).gaps) == {"domain", "replay"}


FORGETTING = {"controller": "forgetting", "update_steps": 2}


def test_forgetting_without_anything_to_watch_is_refused(tiny_model_dir, tmp_path):
    mix = write_mix(tmp_path / "mix", random_rows(24, seed=1))
    with pytest.raises(RecipeError, match="watch"):
        train(tiny_model_dir, mix, TrainConfig(mixture=FORGETTING), tmp_path / "out", seed=0)


def test_without_replay_it_only_watches(tiny_model_dir, tmp_path):
    rows = [token_row(r["input_ids"], r["loss_weights"], "domain", r["id"]) for r in random_rows(12, seed=1)]
    cfg = TrainConfig(max_steps=3, per_device_train_batch_size=2, mixture=FORGETTING)
    done = train(tiny_model_dir, layout(tmp_path, rows), cfg, tmp_path / "out", seed=0)
    assert set(done.gaps) == {"rivers", "law"} and not done.realised


@pytest.mark.parametrize("change", [{"tilt": 0.0}, {"signal": "loss"}])
def test_each_key_of_forgetting_matters(change, tiny_model_dir, tmp_path):
    rows = [r | {"domain": "rivers" if i % 2 else "hills"} for i, r in enumerate(random_rows(30, seed=2))]
    rows = [r | {"source": "replay"} for r in rows]
    mix = layout(tmp_path, rows)
    beside = [r | {"source": "replay", "domain": ("rivers", "hills")[i % 2]} for i, r in enumerate(watched_rows())]
    write_mix(tmp_path / "other", beside)
    (tmp_path / "other" / "train.parquet").rename(mix / WATCHED)

    def asked(**keys):
        cfg = TrainConfig(max_steps=8, per_device_train_batch_size=2, learning_rate=5e-3,
                          mixture=FORGETTING | {"tilt": 1.0} | keys)  # fmt: skip
        out = tmp_path / "-".join(keys or ["usual"])
        train(tiny_model_dir, mix, cfg, out, seed=0)
        return [json.loads(x).get("asked/rivers") for x in (out / MONITOR).read_text().splitlines()][2:]

    assert asked() != asked(**change)


@pytest.mark.parametrize(("looks", "every", "still"), [(20, 10, True), (20, 5, False), (1, 200, False)])
def test_shares_that_never_change_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], looks: int, every: int, still: bool
) -> None:
    mixture = SkillIt({"a": {"b": 0.5}, "b": {}}, looks=looks)
    monitor = Monitor(None, every, tmp_path / "monitor.jsonl", mixture=mixture)  # type: ignore[arg-type]
    monitor._tell_if_still(150)
    assert ("the shares never change" in capfd.readouterr().err) is still

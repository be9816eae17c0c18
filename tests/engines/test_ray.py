"""Growing on Ray: what needs no Ray first, then a real cluster of two nodes in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from regrow.engines.base import Request, SampleParams, ScoreRow
from regrow.engines.choose import make_engine
from regrow.engines.config import RayConfig
from regrow.engines.ray import RayEngine, deal, plan
from regrow.errors import EngineError, MissingExtra
from regrow.models.load import ResolvedModel, resolve_model
from tests.engines.helpers import ids, prompts, requests

BIG, SMALL, GPUS = {"CPU": 16.0}, {"CPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "settings", "wanted"),
    [
        ([BIG, SMALL], {}, (5, 4.0, 0.0)),  # all cores of the smaller node each
        ([BIG, SMALL], {"cpus_per_worker": 8}, (2, 8, 0.0)),
        ([BIG, SMALL], {"cpus_per_worker": 0.5}, (40, 0.5, 0.0)),
        ([BIG, SMALL], {"workers": 2}, (2, 4.0, 0.0)),
        ([GPUS, SMALL], {}, (4, 1.0, 1.0)),  # the node without a GPU holds none
        ([GPUS], {"gpus_per_worker": 0.5}, (8, 1.0, 0.5)),
        ([GPUS], {"gpus_per_worker": 0}, (1, 32.0, 0.0)),
        ([GPUS], {"gpus_per_worker": 2, "cpus_per_worker": 20}, (1, 20, 2)),
    ],
)
def test_workers_by_what_the_nodes_have(nodes, settings, wanted):
    assert plan(nodes, RayConfig(**settings)) == wanted


def test_more_workers_than_fit_wait_for_nodes_and_that_is_said(capsys):
    assert plan([SMALL], RayConfig(workers=3))[0] == 3
    assert "3 workers are asked for, 1 have room now" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"cpus_per_worker": 64}, {"gpus_per_worker": 1}])
def test_no_room_for_a_single_worker_is_an_error(settings):
    with pytest.raises(EngineError, match=r"no node has room .* 16 CPUs and 0 GPUs, 4 CPUs"):
        plan([BIG, SMALL], RayConfig(**settings))


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_chunks_are_contiguous_whole_and_even(parts):
    weights = [1 + i % 5 for i in range(40)]
    runs = deal(weights, parts)
    assert [i for run in runs for i in run] == list(range(40)) and all(runs)
    assert len(runs) <= parts
    sizes = [sum(weights[i] for i in run) for run in runs]
    assert max(sizes) <= sum(weights) / parts + 5
    assert deal([], parts) == []


def test_ray_not_installed(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("regrow.engines.ray.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="'ray'") as caught:
        make_engine("ray", resolve_model(tiny_model_dir))
    assert caught.value.hint == "pip install 'regrow[ray]'"


def test_settings_reach_the_workers(tiny_model_dir, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def record(model, config, **options):
        seen.update(options, config=config)
        raise Stop

    monkeypatch.setattr("regrow.engines.ray.RayEngine", record)
    cluster = RayConfig(address="auto", engine="dummy")
    with pytest.raises(Stop):
        make_engine("ray", resolve_model(tiny_model_dir), seed=7, dtype="bfloat16", batch_size=3, ray=cluster)
    assert seen == {"config": cluster, "seed": 7, "dtype": "bfloat16", "device": "auto", "batch_size": 3,
                    "memory_gib": None}  # fmt: skip
    with pytest.raises(Stop):
        make_engine("ray", resolve_model(tiny_model_dir))
    assert seen["config"] == RayConfig()


def test_the_inner_engine_cannot_be_ray():
    with pytest.raises(ValueError, match="engine"):
        RayConfig(engine="ray")


# -- on a real cluster ------------------------------------------------------------------------------------------------

on_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'regrow[ray]'"),
]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, each with its own raylet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves the workers on a busy machine
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        found.add_node(num_cpus=2)
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def tiny(tiny_model_dir) -> ResolvedModel:
    return resolve_model(tiny_model_dir)


@pytest.fixture(scope="module")
def alone(tiny):
    return make_engine("transformers", tiny)


@pytest.fixture(scope="module")
def spread(cluster, tiny):
    # 1.5 of two cores: one worker a node, and room for the tests that start others.
    config = RayConfig(address=cluster.address, engine="transformers", cpus_per_worker=1.5)
    engine = make_engine("ray", tiny, ray=config)
    while engine._joining:  # it is there as soon as one worker is
        engine._join(engine._next([]))
    yield engine
    engine.close()


def worker_processes() -> list[int]:
    import psutil

    return [p.pid for p in psutil.process_iter(["cmdline"]) if "ray::_Worker" in "".join(p.info["cmdline"] or [])]


class TestOnACluster:
    pytestmark = on_ray

    def test_both_nodes_work_and_the_result_is_that_of_one_process(self, spread, alone):
        assert spread.info.name == "ray:transformers" and spread.info.sampler == "transformers"
        assert spread.info.workers == 2 and spread.info.dtype == "float32"
        wanted = requests(prompts(12, 500))
        found = dict(spread.sample(wanted))
        assert ids(found) == ids(alone.sample(wanted))
        one, two = found[3][0].logprobs, dict(alone.sample(wanted))[3][0].logprobs
        assert np.allclose(one, two, atol=1e-5)
        import psutil

        raylets = {psutil.Process(pid).ppid() for pid in worker_processes()}
        assert len(worker_processes()) == len(raylets) == 2

    def test_scores_are_those_of_one_process_and_in_order(self, spread, alone):
        rows = [ScoreRow(p, 1 + i % 3) for i, p in enumerate(prompts(11, 500))]
        for one, two in zip(alone.score(rows, top_k=4), spread.score(rows, top_k=4), strict=True):
            assert np.allclose(one.logprobs, two.logprobs, atol=1e-5)
            assert (one.top_ids == two.top_ids).all()

    def test_a_refused_request_names_the_worker_and_the_engine_goes_on(self, spread, alone):
        bad = [Request("t/0", (5,) * 2000, 1, 0, SampleParams(8))]
        with pytest.raises(EngineError, match="context") as caught:
            list(spread.sample(bad))
        assert caught.value.where.startswith("worker on ")
        good = requests(prompts(3, 500))
        assert ids(spread.sample(good)) == ids(alone.sample(good))

    def test_results_nobody_took_do_not_turn_up_later(self, spread, alone):
        first = spread.sample(requests(prompts(9, 500)))
        next(first)
        first.close()
        good = requests(prompts(7, 500, seed=5), seed=77)
        assert ids(spread.sample(good)) == ids(alone.sample(good))

    def test_a_worker_killed_in_the_middle_loses_nothing_and_comes_back(self, spread, alone, capsys):
        few = requests(prompts(12, 500), params=SampleParams(200))
        many = few * 6
        answers = spread.sample(many)
        found = [next(answers)]
        while spread._joining:  # both work
            found.append(next(answers))
        before = set(worker_processes())
        os.kill(min(before), signal.SIGKILL)
        found += answers
        assert sorted(i for i, _ in found) == list(range(len(many)))
        wanted = ids(alone.sample(few))
        assert all(tokens == wanted[i % 12] for i, tokens in ids(found).items())
        assert "a worker died; its" in capsys.readouterr().err
        deadline = time.monotonic() + 120
        while len(worker_processes()) < 2 or spread._joining:
            assert time.monotonic() < deadline
            list(spread.sample(few[:1]))
        assert ids(spread.sample(few)) == wanted
        assert set(worker_processes()) != before

    def test_a_corpus_is_the_same_from_the_command_line(self, cluster, tiny_model_dir, tmp_path):
        from regrow.engines.dummy import DummyEngine
        from regrow.models.load import load_tokenizer
        from tests.grow.helpers import run, settings, snapshot

        out, recipe = tmp_path / "spread", tmp_path / "recipe.yaml"
        cfg = settings(engine="ray", ray={"engine": "dummy", "cpus_per_worker": 0.1}, dialogues=6)
        recipe.write_text(yaml.safe_dump({"grow": cfg.model_dump(mode="json"), "seed": 3}))
        command = [sys.executable, "-c", "from regrow.cli import main; main()", "grow", str(tiny_model_dir)]
        command += ["-o", str(out), "--recipe", str(recipe), "--engine", "ray", "--ray-address", cluster.address]
        command += ["--set", "grow.ray.workers=2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "2 workers on Ray, each dummy" in done.stderr
        model = ResolvedModel(Path(tiny_model_dir), str(tiny_model_dir), resolve_model(tiny_model_dir).revision)
        engine = DummyEngine(load_tokenizer(model.path), seed=3, model=model.name, revision=model.revision)
        run(tiny_model_dir, tmp_path / "alone", settings(dialogues=6), engine, seed=3)
        assert snapshot(out) == snapshot(tmp_path / "alone")

    def test_a_model_that_a_node_lacks_is_named(self, cluster, tiny):
        gone = ResolvedModel(tiny.path / "gone", str(tiny.path / "gone"), tiny.revision)
        with pytest.raises(EngineError, match="no such model folder") as caught:
            RayEngine(gone, RayConfig(address=cluster.address, engine="dummy", cpus_per_worker=0.1, workers=1))
        assert "worker on " in str(caught.value)
        other = ResolvedModel(tiny.path, tiny.name, "another")
        with pytest.raises(EngineError, match="holds another model"):
            RayEngine(other, RayConfig(address=cluster.address, engine="dummy", cpus_per_worker=0.1, workers=1))

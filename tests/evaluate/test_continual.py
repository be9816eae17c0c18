"""Metrics over a sequence of trainings: worked by hand, and equal to Avalanche's on recorded matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.continual import (
    average_accuracy,
    backward_transfer,
    best_rows,
    forgetting,
    forward_transfer,
    sequence_results,
    sequence_text,
)
from regrow.evaluate.items import Record
from tests.evaluate.saved import records

CFG = EvalConfig(bootstrap=2000)

# Rows: untouched base, then after each training; columns: tasks. The values were recorded from avalanche-lib 0.6.0
# (Forgetting and BWT of avalanche.evaluation.metrics.forgetting_bwt, ForwardTransfer of forward_transfer beside it),
# fed as its stream metrics feed them: "initial" when the task was just trained, "last" afterwards; averaged over the
# tasks but the last (forgetting, BWT) or but the first (forward transfer).
RECORDED = [
    (
        [[0.25, 0.5, 0.125], [0.875, 0.5, 0.25], [0.625, 0.75, 0.375], [0.5, 0.625, 1.0]],
        {"forgetting": 0.25, "bwt": -0.25, "fwt": 0.125},
    ),
    (
        [
            [0.2, 0.31, 0.4, 0.1],
            [0.9, 0.35, 0.38, 0.12],
            [0.7, 0.88, 0.45, 0.15],
            [0.75, 0.6, 0.93, 0.3],
            [0.65, 0.7, 0.8, 0.97],
        ],
        {"forgetting": 0.18666666666666668, "bwt": -0.18666666666666668, "fwt": 0.09666666666666664},
    ),
]


@pytest.mark.parametrize(("matrix", "avalanche"), RECORDED)
def test_values_are_avalanches(matrix: list[list[float]], avalanche: dict[str, float]) -> None:
    assert backward_transfer(matrix) == pytest.approx(avalanche["bwt"], abs=1e-15)
    assert -backward_transfer(matrix) == pytest.approx(avalanche["forgetting"], abs=1e-15)
    assert forward_transfer(matrix) == pytest.approx(avalanche["fwt"], abs=1e-15)


def test_values_by_hand() -> None:
    """Three tasks; task 2 was best after training 2 (.75), task 1 after training 1 (.875)."""
    r = RECORDED[0][0]
    assert average_accuracy(r) == (0.5 + 0.625 + 1.0) / 3
    assert backward_transfer(r) == ((0.5 - 0.875) + (0.625 - 0.75)) / 2
    assert forward_transfer(r) == ((0.5 - 0.5) + (0.375 - 0.125)) / 2
    assert forgetting(r) == ((0.875 - 0.5) + (0.75 - 0.625)) / 2


def test_forgetting_is_from_the_best_model_before_and_not_from_the_base() -> None:
    """Task 1 peaks after training 2; the base's own score counts for nothing; ending better is negative."""
    r = [[0.9, 0.0, 0.0], [0.5, 0.1, 0.0], [0.75, 0.5, 0.0], [0.25, 0.75, 1.0]]
    assert list(best_rows(r)) == [2, 2]
    assert forgetting(r) == ((0.75 - 0.25) + (0.5 - 0.75)) / 2
    assert forgetting(r, best=[1, 2]) == ((0.5 - 0.25) + (0.5 - 0.75)) / 2


@given(st.integers(2, 5), st.integers(0, 2**31))
def test_forgetting_bounds_backward_transfer_and_axes_in_front_are_draws(tasks: int, seed: int) -> None:
    r = np.random.default_rng(seed).random((3, tasks + 1, tasks))
    assert (forgetting(r) >= -backward_transfer(r) - 1e-12).all(), "the best is at least the model just after training"
    for measure in (average_accuracy, backward_transfer, forgetting, forward_transfer):
        assert measure(r) == pytest.approx([float(measure(m)) for m in r])


def test_a_matrix_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"T \+ 1 rows"):
        average_accuracy(np.zeros((3, 3)))
    for measure in (backward_transfer, forgetting, forward_transfer):
        with pytest.raises(ValueError, match="2 tasks"):
            measure(np.zeros((2, 1)))


def scored(matrix: np.ndarray, n: int = 40, metric: str = "acc") -> list[Record]:
    """Records whose means are the matrix, in fortieths."""
    arms = ["base", *(f"step-{i}" for i in range(1, len(matrix)))]
    out = []
    for j in range(matrix.shape[1]):
        values = {a: (np.arange(n) < round(n * matrix[i, j])).astype(float) for i, a in enumerate(arms)}
        out += records(f"task{j}", metric, values)
    return out


MATRIX = np.array([[0.25, 0.5, 0.1], [0.9, 0.5, 0.25], [0.6, 0.75, 0.4], [0.5, 0.65, 1.0]])
ARMS, TASKS = ["base", "step-1", "step-2", "step-3"], ["task0", "task1", "task2"]


def test_results_have_the_matrix_the_metrics_with_intervals_and_the_flips() -> None:
    extra = records("facts", "acc", {a: np.ones(10) for a in ARMS})
    r = sequence_results(scored(MATRIX) + extra, ARMS, TASKS, CFG, seed=0)
    values = np.array([r["matrix"][t]["values"] for t in TASKS]).T
    assert values == pytest.approx(MATRIX)
    assert [c["task"] for c in r["matrix"].values()] == [True, True, True, False]
    for name, measure in (("average_accuracy", average_accuracy), ("backward_transfer", backward_transfer),
                          ("forgetting", forgetting), ("forward_transfer", forward_transfer)):  # fmt: skip
        found = r["metrics"][name]
        assert found["value"] == pytest.approx(float(measure(MATRIX)))
        assert found["ci"][0] < found["value"] < found["ci"][1]
    assert r["flips"]["task0"] == [
        {"lost": 0, "kept": 10, "won": 26, "returned": 0, "never": 4},
        {"lost": 12, "kept": 24, "won": 0, "returned": 0, "never": 4},
        {"lost": 4, "kept": 20, "won": 0, "returned": 0, "never": 4},
    ]
    assert r["flips"]["task1"][2]["lost"] == 4
    told = sequence_text(r)
    assert "step-2" in told and "60.0" in told and "facts" in told and "no task" in told
    assert f"forgetting (below the best it had been): {100 * r['metrics']['forgetting']['value']:.1f} %" in told


def test_an_item_that_comes_back_is_counted() -> None:
    table = {"base": [1, 0], "step-1": [0, 0], "step-2": [1, 1]}
    found = [r for t in ("a", "b") for r in records(t, "acc", {k: np.array(v, float) for k, v in table.items()})]
    flips = sequence_results(found, list(table), ["a", "b"], CFG, seed=0)["flips"]["a"]
    assert flips[1] == {"lost": 0, "kept": 0, "won": 2, "returned": 1, "never": 0}


def test_losses_are_turned_so_that_more_is_better() -> None:
    r = sequence_results(scored(MATRIX, metric="nll"), ARMS, TASKS, CFG, seed=0)
    assert not r["higher_is_better"]
    assert r["metrics"]["backward_transfer"]["value"] == pytest.approx(float(backward_transfer(-MATRIX)))
    assert "losses count negative" in sequence_text(r)


def test_tasks_have_to_match_the_trainings() -> None:
    found = scored(MATRIX)
    mixed = [r for r in found if r.suite != "task1"] + [
        Record(r.item_id, r.suite, r.domain, r.arm, {"nll": 1.0}) for r in found if r.suite == "task1"
    ]
    for given_, tasks, message in (
        (found, TASKS[:2], r"3 trained model\(s\) and 2 task"),
        (found, ["task0", "task1", "task1"], "named twice"),
        (found, ["task0", "task1", "other"], "'other' has no items"),
        (mixed, TASKS, "different ways"),
    ):
        with pytest.raises(DataError, match=message):
            sequence_results(given_, ARMS, tasks, CFG, seed=0)

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.errors import DataError
from regrow.rows.row import Row
from regrow.rows.split import normalise_question, split_rows


def row(i: int, question: str, group: str | None = None) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"a{i}"}]
    return Row(str(i), messages, meta={"group": group} if group else {})


def test_normalised() -> None:
    assert normalise_question("  What is\u00a0X? ") == normalise_question("what is x") == "what is x"
    assert normalise_question("ﬁne") == "fine"
    assert normalise_question("?!") == "?!" != normalise_question("!?")


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, "x", "y", "z"])), min_size=2, max_size=40),
    st.one_of(st.floats(0.05, 0.9), st.integers(1, 20)),
    st.integers(0, 9),
)
def test_nothing_straddles_and_nothing_is_lost(
    said: list[tuple[str, str | None]], size: float | int, seed: int
) -> None:
    rows = [row(i, q.upper() + "?" if i % 2 else q, g) for i, (q, g) in enumerate(said)]
    try:
        train, held = split_rows(rows, size, seed)
    except DataError as error:
        assert "too few" in str(error)
        return
    assert train and held and sorted(train + held, key=lambda r: int(r.id)) == rows
    assert [int(r.id) for r in train] == sorted(int(r.id) for r in train)
    for key in (lambda r: normalise_question(r.messages[0]["content"]), lambda r: r.meta.get("group")):
        assert not ({key(r) for r in train} & {key(r) for r in held}) - {None}


def test_size_and_seed() -> None:
    rows = [row(i, f"question {i}") for i in range(100)]
    train, held = split_rows(rows, 0.1, 0)
    assert len(held) == 10 and len(train) == 90
    assert split_rows(rows, 0.1, 0) == (train, held)
    assert split_rows(rows, 10, 0)[1] == held
    assert split_rows(rows, 0.1, 1)[1] != held
    # the choice depends on the rows, not on their order, and more rows move few others
    assert {r.id for r in split_rows(rows[::-1], 0.1, 0)[1]} == {r.id for r in held}
    fewer = {r.id for r in split_rows(rows[:90], 10, 0)[1]}
    assert len(fewer & {r.id for r in held}) >= 7


def test_system_prompt_and_blocks_do_not_hide_a_question() -> None:
    a = Row(
        "a",
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Same?"},
            {"role": "assistant", "content": "1"},
        ],
    )
    b = Row(
        "b", [{"role": "user", "content": [{"type": "text", "text": "same"}]}, {"role": "assistant", "content": "2"}]
    )
    with pytest.raises(DataError, match="1 different question"):
        split_rows([a, b], 1, 0)


@pytest.mark.parametrize("size", [0, 0.0, 1.0, 1.5, -1, True, 10, 11])
def test_impossible_sizes(size: float) -> None:
    with pytest.raises(DataError) as error:
        split_rows([row(i, f"q{i}") for i in range(10)], size, 0)
    assert error.value.where == "test_size"


def test_one_group_larger_than_asked() -> None:
    rows = [row(i, f"q{i}", "g" if i < 5 else "h") for i in range(9)]
    train, held = split_rows(rows, 1, 0)
    assert len(held) == 4 and len(train) == 5


def test_no_dependence_on_the_hash_seed() -> None:
    program = (
        "from tests.rows.test_split import row, split_rows\n"
        "print([r.id for r in split_rows([row(i, f'q{i}') for i in range(50)], 0.3, 3)[1]])"
    )
    out = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(out) == 1 and next(iter(out)).startswith("[")

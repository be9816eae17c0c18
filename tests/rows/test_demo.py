from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from regrow.demo import QUESTIONS, build_demo_dataset, collect_facts
from regrow.errors import DataError
from regrow.rows.readers import read_rows
from regrow.rows.split import split_rows


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo_dataset(tmp_path_factory.mktemp("demo") / "demo.jsonl")


def test_rows_are_read_without_a_fault(demo: Path) -> None:
    result = read_rows(demo)
    assert len(result.rows) == 160 and result.dropped == {} and result.format == "question_answer"
    assert {r.domain for r in result.rows} == {"python-api"}


def test_wordings_of_one_name_stay_together(demo: Path) -> None:
    rows = read_rows(demo).rows
    sizes = Counter(r.meta["group"] for r in rows)
    assert set(sizes.values()) == {1, 2}
    train, held = split_rows(rows, 40, 0)
    assert 35 <= len(held) <= 40
    assert not {r.meta["group"] for r in train} & {r.meta["group"] for r in held}


def test_answers_are_short_prose_or_exact_names(demo: Path) -> None:
    kinds = Counter()
    for record in records(demo):
        question, answer, kind = record["question"], record["answer"], record["meta"]["kind"]
        kinds[kind] += 1
        assert 3 <= len(re.findall(r"\w+|[^\w\s]", answer)) <= 60
        assert question.isascii() and answer.isascii() and "\n" not in question + answer
        if kind == "name":
            assert record["meta"]["group"] not in question
        if kind in ("purpose", "exception"):
            assert answer[0].isupper() and answer.endswith(".")
    assert set(kinds) == set(QUESTIONS) and kinds["purpose"] == max(kinds.values())


def test_no_two_facts_ask_the_same(demo: Path) -> None:
    asked = Counter(r["question"] for r in records(demo))
    assert max(asked.values()) == 1


def test_answers_agree_with_python_itself() -> None:
    """Signatures and defaults are checked against the objects, descriptions against their docstrings."""
    for fact in collect_facts(["shutil", "statistics", "textwrap", "collections", "bisect"]):
        module = importlib.import_module(fact.module)
        obj: Any = module
        for part in fact.name.removeprefix(f"{fact.module}.").split("."):
            obj = getattr(obj, part)
        if fact.kind == "default":
            value = inspect.signature(obj).parameters[fact.fields["parameter"]].default
            assert fact.answer == f"The default value of `{fact.fields['parameter']}` is `{value!r}`."
        elif fact.kind == "signature":
            inside = fact.answer.strip("`").removeprefix(fact.name)
            names = [p for p in inspect.signature(obj).parameters if p not in ("self", "cls")]
            assert re.findall(r"(?:(?<=[(,*])|(?<= ))(\w+)(?=[,=)])", inside) == names
        elif fact.kind == "purpose":
            words = re.findall(r"\w+", fact.answer)
            assert words == re.findall(r"\w+", inspect.getdoc(obj) or "")[: len(words)]


def test_known_facts_are_there() -> None:
    answers = {(f.kind, f.name): f.answer for f in collect_facts(["statistics", "textwrap", "shutil", "bisect"])}
    assert answers["default", "textwrap.fill"] == "The default value of `width` is `70`."
    assert answers["purpose", "shutil.move"] == "Recursively move a file or directory to another location."
    assert answers["signature", "bisect.insort_left"] == "`bisect.insort_left(a, x, lo=0, hi=None, *, key=None)`"


def test_same_file_in_another_process_and_other_rows_by_seed(demo: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    program = f"from regrow.demo import build_demo_dataset; build_demo_dataset({str(again)!r})"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=60)
    assert again.read_bytes() == demo.read_bytes()
    assert build_demo_dataset(tmp_path / "other.jsonl", seed=1).read_bytes() != demo.read_bytes()


def test_patched_modules_of_this_process_do_not_change_the_file(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import math
    import statistics

    monkeypatch.delattr(math, "fabs")
    monkeypatch.setattr(statistics.mean, "__doc__", "Patched.")
    assert build_demo_dataset(tmp_path / "again.jsonl").read_bytes() == demo.read_bytes()


def test_limit_and_modules(tmp_path: Path) -> None:
    few = build_demo_dataset(tmp_path / "few.jsonl", limit=7, modules=["statistics"])
    assert len(records(few)) == 7
    assert {r["meta"]["module"] for r in records(few)} == {"statistics"}
    everything = records(build_demo_dataset(tmp_path / "all.jsonl", limit=10**9))
    assert len({r["meta"]["group"] for r in everything}) > 900
    with pytest.raises(DataError, match="cannot be imported"):
        build_demo_dataset(tmp_path / "x.jsonl", modules=["no_such_module"])
    with pytest.raises(DataError, match="no usable documentation"):
        build_demo_dataset(tmp_path / "x.jsonl", modules=["keyword"])
    with pytest.raises(DataError, match="limit"):
        build_demo_dataset(tmp_path / "x.jsonl", limit=0)
    assert not (tmp_path / "x.jsonl").exists()

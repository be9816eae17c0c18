"""Do damage on purpose, and count what comes of it.

    python scripts/faults.py                 # all faults, 20,000 damaged inputs a reader (about half an hour)
    python scripts/faults.py --quick         # without tests marked slow, 500 inputs a reader
    python scripts/faults.py --fuzz-only --inputs 100000

Two kinds: faults that tests of the suite inject, run here by name and counted; and files of ours that are damaged at
random (bits, cuts, copies, deep nesting, huge numbers) and read back. Of a damaged file only two things may come: it
is read, or one `RegrowError` says what is wrong. Anything else (another exception, more than `SECONDS` of work) is a
failure and is printed with the seed that makes it again.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 20
GOOD_ROW = {"question": "What is 2 + 2?", "answer": "4", "domain": "sums"}


@dataclass(frozen=True)
class Fault:
    """A kind of fault that tests inject.

    Attributes:
        name: What goes wrong.
        outcome: What has to come of it.
        tests: ``file::function`` of the tests that see to it; all cases of a function count.
    """

    name: str
    outcome: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "SIGKILL at random moments: growing, training, scoring, writing, converting, the whole chain",
        "the same command goes on; nothing lost, nothing done twice",
        (
            "tests/grow/test_crash.py::test_kill_and_resume",
            "tests/grow/test_crash.py::test_a_hundred_kills",
            "tests/grow/test_server.py::test_a_killed_run_pays_for_nothing_twice",
            "tests/train/test_resume.py::test_killed_and_continued_equals_uninterrupted",
            "tests/evaluate/test_stage.py::test_killed_in_the_middle_it_goes_on_and_scores_nothing_twice",
            "tests/cli/test_eval.py::test_killed_it_continues_with_the_same_command",
            "tests/rows/test_writers.py::test_a_killed_writer_leaves_the_old_file",
            "tests/models/test_load.py::test_killed_while_building",
            "tests/pipeline/test_run.py::test_kill_9_at_random_moments_changes_nothing",
            "tests/pipeline/test_run.py::test_ctrl_c_says_how_to_go_on",
        ),
    ),
    Fault(
        "an engine or a server dies, lies, or refuses",
        "tried again, then one error; what was answered is kept",
        (
            "tests/grow/test_crash.py::test_an_engine_that_dies",
            "tests/engines/test_openai.py::test_retries_used_up_keep_what_was_yielded",
            "tests/engines/test_openai.py::test_a_refusal_is_one_error_and_no_retry",
            "tests/engines/test_openai.py::test_wrong_token_counts_are_noticed",
            "tests/engines/test_openai.py::test_answers_that_are_wrong_are_not_kept",
            "tests/evaluate/test_served.py::test_without_log_probabilities_only_what_is_written_can_be_asked",
        ),
    ),
    Fault(
        "the disk is full",
        "one clear error; what was committed stays, nothing half-written",
        (
            "tests/grow/test_store.py::test_disk_full",
            "tests/grow/test_store.py::test_a_failed_commit_leaves_nothing",
            "tests/models/test_load.py::test_a_full_disk_is_a_clear_message",
            "tests/train/test_stage.py::test_a_full_disk_is_a_clear_error_and_leaves_no_model",
            "tests/train/test_stage.py::test_too_little_room_is_noticed_before_training",
            "tests/rows/test_writers.py::test_failure_leaves_the_old_file_and_nothing_else",
            "tests/test_faults.py::test_scores_and_results_on_a_full_disk",
        ),
    ),
    Fault(
        "the clock goes backwards",
        "no negative times, the run goes on",
        ("tests/test_faults.py::test_the_clock_goes_backwards",),
    ),
    Fault(
        "corrupt manifest, stage output, checkpoint, ledger, corpus, model folder",
        "named with its place; redone, or one clear error",
        (
            "tests/pipeline/test_runs.py::test_damaged_outputs_are_noticed",
            "tests/pipeline/test_runs.py::test_a_damaged_manifest_is_one_clear_error",
            "tests/train/test_resume.py::test_a_damaged_checkpoint_is_skipped_with_a_note",
            "tests/evaluate/test_cache.py::test_a_torn_last_line_is_cut_off_wherever_it_was_torn",
            "tests/evaluate/test_cache.py::test_damage_in_the_middle_is_named",
            "tests/grow/test_store.py::test_a_torn_last_record_is_left_out",
            "tests/grow/test_store.py::test_rubbish_after_the_last_record",
            "tests/grow/test_store.py::test_a_damaged_file_says_so",
            "tests/models/test_load.py::test_damaged_folders",
            "tests/models/test_load.py::test_a_huge_header_length_is_no_crash",
            "tests/report/test_page.py::test_damaged_files_are_named",
        ),
    ),
    Fault(
        "two processes on one run, corpus or conversion",
        "the second is refused or waits; nothing is done twice",
        (
            "tests/pipeline/test_runs.py::test_a_second_process_is_refused_and_kill_releases_the_lock",
            "tests/grow/test_crash.py::test_a_second_writer_is_refused_and_a_reader_is_not",
            "tests/models/test_load.py::test_two_processes_build_once",
        ),
    ),
    Fault(
        "hostile datasets: bombs, a million columns, paths out of the folder, billion laughs, any records, any bytes",
        "refused with file and line, or counted as dropped",
        (
            "tests/rows/test_bad_input.py::test_a_million_columns_are_refused",
            "tests/rows/test_bad_input.py::test_gzip_bomb_and_damage",
            "tests/rows/test_bad_input.py::test_damaged_and_numeric_parquet",
            "tests/rows/test_bad_input.py::test_links_out_of_the_folder_are_passed_over",
            "tests/rows/test_bad_input.py::test_any_records",
            "tests/rows/test_bad_input.py::test_any_bytes",
            "tests/rows/test_readers.py::test_images_stay_in_the_data_folder",
            "tests/pipeline/test_recipe.py::test_a_billion_laughs_are_refused_at_once",
            "tests/test_faults.py::test_a_billion_laughs_in_the_recipe_of_a_suite",
            "tests/pipeline/test_recipe.py::test_any_text_gives_a_recipe_or_a_recipe_error",
            "tests/pipeline/test_recipe.py::test_any_yaml_value_gives_a_recipe_or_a_recipe_error",
        ),
    ),
    Fault(
        "a pickle in place of weights, or in a checkpoint",
        "refused, and not run",
        (
            "tests/train/test_resume.py::test_a_planted_pickle_is_refused_and_not_run",
            "tests/test_faults.py::test_a_pickle_named_safetensors_is_not_run",
        ),
    ),
    Fault(
        "template markers in the text of users and models",
        "they stay text: no marker token comes of them",
        (
            "tests/models/test_turns.py::test_content_never_becomes_a_marker",
            "tests/models/test_turns.py::test_markers_that_are_not_flagged_special",
            "tests/mix/test_tokenize.py::test_look_alikes_in_content_never_become_markers",
        ),
    ),
    Fault(
        "scripts in model output, names and metrics",
        "they stay text in the report, the notebook and the terminal",
        (
            "tests/report/test_page.py::test_hostile_text_stays_text",
            "tests/report/test_page.py::test_hostile_arm_names_and_metrics_are_escaped",
            "tests/report/test_page.py::test_what_was_lost_is_escaped",
            "tests/test_notebook.py::test_results_show_themselves_and_escape_what_they_show",
        ),
    ),
)


# -- damaged files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A reader of ours.

    Attributes:
        name: What it reads.
        make: Writes a good file into a folder and returns it; the seed varies it.
        read: Reads the file again.
    """

    name: str
    make: Callable[[Path, int], Path]
    read: Callable[[Path], object]


@dataclass
class Count:
    """What came of damaged files: read all the same, refused with a clear error, or something else (with its seed)."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)


TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"null",
    b"true", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"-1", b"0.5", b'""', b"{}", b"[]", b"[" * 3000,
    b'{"a":' * 3000, b"!!python/object:os.system", b"&a *a", b"? ", b"- ", b"../../etc/passwd", b"\xe2\x80\xa8",
)  # fmt: skip


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes: flipped bits, cuts, copies, inserted bytes or tokens, a swapped number."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice((1, 2, 7, 40, 400))]
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 2, 9))
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 5:
            out[at:at] = rng.choice(TOKENS)
        else:
            digits = [i for i, b in enumerate(out) if 48 <= b <= 57]
            if digits:
                i = rng.choice(digits)
                out[i : i + 1] = rng.choice((b"-1", b"1e308", b"null", b'"1"', b"99999999999999999999", b"0"))
    return bytes(out)


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """TimeoutError in this thread after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(target: Target, n: int, *, seed: int = 0) -> Count:
    """Damage a good file ``n`` times and read it back each time."""
    from regrow.errors import RegrowError

    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        good = [target.make(Path(folder) / f"good-{k}", k) for k in range(4)]
        whole = [p.read_bytes() for p in good]
        for path in good:
            target.read(path)  # a reader that refuses good files would pass everything else
        for i in range(n):
            rng = random.Random(f"{target.name}/{seed}/{i}")
            k = rng.randrange(len(good))
            good[k].write_bytes(damage(whole[k], rng))
            count.inputs += 1
            try:
                with limit(SECONDS), redirect_stderr(StringIO()):
                    target.read(good[k])
                count.read += 1
            except RegrowError as error:
                if str(error).strip():
                    count.refused += 1
                else:
                    count.failed.append(f"{target.name}, seed {seed}/{i}: an error that says nothing")
            except Exception as error:
                count.failed.append(f"{target.name}, seed {seed}/{i}: {type(error).__name__}: {str(error)[:120]}")
            good[k].write_bytes(whole[k])
    return count


def _rows(suffix: str) -> Callable[[Path, int], Path]:
    def make(folder: Path, k: int) -> Path:
        from regrow.rows.row import Row
        from regrow.rows.writers import write_jsonl, write_parquet

        folder.mkdir(parents=True)
        path = folder / f"d{suffix}"
        said = [{"role": "user", "content": f"What is {k}?"}, {"role": "assistant", "content": "A number, é."}]
        rows = [Row(f"r{i}", said, domain="sums") for i in range(5 + k)]
        if suffix == ".parquet":
            write_parquet(rows, path)
        elif suffix == ".jsonl":
            write_jsonl(rows, path)
        elif suffix == ".json":
            path.write_text(json.dumps([{**GOOD_ROW, "id": i} for i in range(4 + k)]))
        else:
            path.write_text("question,answer\n" + f'"What is, {k}?",yes\n' * 5)
        return path

    return make


def _text(name: str, text: Callable[[int], str]) -> Callable[[Path, int], Path]:
    def make(folder: Path, k: int) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(text(k), encoding="utf-8")
        return path

    return make


def _read_rows(path: Path) -> object:
    from regrow.rows.readers import read_rows

    # Both ways of reading, and the same one again for the same file.
    return read_rows(path, on_bad=("error", "drop")[len(path.read_bytes()) % 2])  # type: ignore[arg-type]


def _recipe(k: int) -> str:
    from regrow.recipe import dump_recipe, parse_recipe

    whole = dump_recipe(parse_recipe(f"seed: {k}\nmix: {{replay_ratio: 0.{k + 1}}}\n"))
    return whole if k % 2 else f"seed: {k}\ntrain:\n  method: lora\n  learning_rate: 1.0e-4\ngrow: {{shape: [8, 4]}}\n"


def _read_recipe(path: Path) -> object:
    from regrow.recipe import load_recipe

    return load_recipe(path)


def _make_run(folder: Path, k: int) -> Path:
    from regrow.runs import MANIFEST, open_run

    def work(at: Path) -> dict[str, Any]:
        (at / "out.txt").write_text("x")
        return {"rows": k, "share": 0.5}

    with open_run(folder) as run:
        run.stage("grow", {"shape": [8, 4], "seed": k, "deep": {"a": None}}, work)
        run.stage("train/sft", {"learning_rate": 1e-4}, work)
    return folder / MANIFEST


def _read_run(path: Path) -> object:
    """The manifest as the run, the report and the list of runs read it."""
    from regrow.report.build import load_report
    from regrow.report.compare import find_runs
    from regrow.runs import open_run, read_manifest

    find_runs(path.parent)
    read_manifest(path.parent)
    load_report(path.parent).text_table()
    with open_run(path.parent) as run:
        run.stage("grow", {"seed": 1}, lambda folder: {})
    return None


def _make_scores(folder: Path, k: int) -> Path:
    from regrow.ledger import Ledger

    with Ledger(folder / "scores.jsonl") as ledger:
        ledger.add("p", [(f"i{i}", {"metrics": {"acc": 1.0, "nll": 0.3}, "output": "é"}) for i in range(6 + k)])
    return folder / "scores.jsonl"


def _read_scores(path: Path) -> object:
    from regrow.ledger import Ledger

    with Ledger(path) as ledger:
        return len(ledger)


def _items(k: int) -> str:
    lines = [{"question": f"{i}?", "choices": ["a", "b"], "answer": i % 2, "id": i} for i in range(3 + k)]
    lines += [{"messages": [{"role": "user", "content": "?"}], "answers": ["Rome"], "domain": "x"}]  # type: ignore[list-item]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _read_items(path: Path) -> object:
    from regrow.evaluate.suites.local import read_local

    return read_local(path)


def _make_suite(folder: Path, k: int) -> Path:
    _text("rows.jsonl", _items)(folder, k)
    path = folder / "mine.yaml"
    path.write_text(
        f"scenario: rows.jsonl\nlimit: {k + 1}\ninstruction:\n  template: 'Say. {{question}}'\n  examples: 1\n"
        "inferencer: generate\nmax_new_tokens: 4\nmetric: contains\n"
    )
    return path


def _read_suite(path: Path) -> object:
    from regrow.evaluate.suites.recipe import read_recipe

    return read_recipe(path)


def _make_corpus(name: str) -> Callable[[Path, int], Path]:
    def make(folder: Path, k: int) -> Path:
        from regrow.grow.corpus import Dialogue, Node, write_corpus

        nodes = [
            Node(f"0/{i}", None, 0, "t", 1, "user", [5, 6, i], f"What is {i}?", -1.0, None, "stop", True, None, i)
            for i in range(4 + k)
        ]
        said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
        write_corpus(folder, nodes, [Dialogue(f"0/{i}/0", said, [f"0/{i}"], "t", 0, 9) for i in range(4 + k)], {})
        return folder / name

    return make


def _read_corpus(path: Path) -> object:
    from regrow.evaluate.lost import read_branches
    from regrow.grow.corpus import read_nodes

    return list(read_nodes(path.parent)) if path.name == "nodes.parquet" else read_branches(path.parent)


def _make_model(name: str) -> Callable[[Path, int], Path]:
    def make(folder: Path, k: int) -> Path:
        import numpy as np
        from safetensors.numpy import save_file

        folder.mkdir(parents=True)
        save_file({f"w{i}": np.zeros((3, k + 2), np.float32) for i in range(3)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8 + k}))
        (folder / "tokenizer.json").write_text("{}")
        return folder / name

    return make


def _read_model(path: Path) -> object:
    from regrow.models.check import check_folder

    return check_folder(path.parent)


TARGETS = (
    Target("rows, .jsonl", _rows(".jsonl"), _read_rows),
    Target("rows, .json", _rows(".json"), _read_rows),
    Target("rows, .csv", _rows(".csv"), _read_rows),
    Target("rows, .parquet", _rows(".parquet"), _read_rows),
    Target("recipe", _text("recipe.yaml", _recipe), _read_recipe),
    Target("manifest of a run", _make_run, _read_run),
    Target("ledger of scores", _make_scores, _read_scores),
    Target("items of a suite", _text("mine.jsonl", _items), _read_items),
    Target("recipe of a suite", _make_suite, _read_suite),
    Target("corpus, nodes", _make_corpus("nodes.parquet"), _read_corpus),
    Target("corpus, dialogues", _make_corpus("dialogues.parquet"), _read_corpus),
    Target("weights, .safetensors", _make_model("model.safetensors"), _read_model),
    Target("config of a model", _make_model("config.json"), _read_model),
)


# -- tests of the suite -------------------------------------------------------------------------------------------


def run_tests(fault: Fault, *, quick: bool) -> tuple[Counter[str], list[str]]:
    """Run the tests of a fault; counts of ``passed``, ``failed``, ``skipped``, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        marks = ["-m", "not slow"] if quick else []
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *marks, *fault.tests],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if not report.is_file():
            return Counter(failed=1), ["pytest did not run"]
        cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314 - written by our own pytest just now
    count: Counter[str] = Counter()
    failed = []
    for case in cases:
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        count[kind] += 1
        if kind == "failed":
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return count, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, help="damaged files a reader (20,000; with --quick 500; 0 for none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="no tests marked slow, few inputs")
    parser.add_argument("--fuzz-only", action="store_true", help="damaged files only")
    given = parser.parse_args()
    inputs = given.inputs if given.inputs is not None else (500 if given.quick else 20_000)
    failures: list[str] = []
    if not given.fuzz_only:
        print("| Fault | What has to come of it | Cases | Passed | Skipped | Failed |")
        print("| --- | --- | --- | --- | --- | --- |")
        for fault in FAULTS:
            count, failed = run_tests(fault, quick=given.quick)
            failures += failed
            cells = (count.total(), count["passed"], count["skipped"], count["failed"])
            print(f"| {fault.name} | {fault.outcome} | {' | '.join(map(str, cells))} |", flush=True)
    if inputs:
        print()
        _fuzz_all(inputs, given.seed, failures)
    for failure in failures[:50]:
        print(f"- {failure}")
    return 1 if failures else 0


def _fuzz_all(inputs: int, seed: int, failures: list[str]) -> None:
    print("| Damaged file | Inputs | Read all the same | Refused, and said why | Anything else | Seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    total, failed = Count(), 0
    for target in TARGETS:
        started = time.monotonic()
        found = fuzz(target, inputs, seed=seed)
        failures += found.failed
        failed += len(found.failed)
        total.inputs, total.read = total.inputs + found.inputs, total.read + found.read
        total.refused += found.refused
        spent = time.monotonic() - started
        cells = (f"{found.inputs:,}", f"{found.read:,}", f"{found.refused:,}", len(found.failed), f"{spent:.0f}")
        print(f"| {target.name} | {' | '.join(map(str, cells))} |", flush=True)
    print(f"| all | {total.inputs:,} | {total.read:,} | {total.refused:,} | {failed} | |")


if __name__ == "__main__":
    sys.exit(main())

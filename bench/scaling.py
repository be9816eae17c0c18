"""How time and memory grow with the size of a corpus, and how long the start takes.

    python bench/scaling.py --repeats 3
    python bench/scaling.py --what startup --model smollm2

Every measurement is a process of its own, so that its peak memory is its own; making the data is not timed. What is
measured, against rows (``n``):

- ``grow``: `regrow.grow.stage.grow` with the dummy engine and no encoder; n is nodes (candidates, kept or not).
  Writing the corpus at the end is included.
- ``curate``: the whole stage on that corpus, duplicates by words; n is kept turns.
- ``dedup words``: `minhash_pairs` on texts of 60 words of a Zipf vocabulary, every tenth an earlier one with one or
  two words exchanged.
- ``dedup meaning``: `embedding_pairs` on unit vectors in 384 dimensions, in clusters as sentence embeddings are
  (cosine 0.15 in general, 0.45 within one of 200 topics), every tenth at 0.95 to 0.97 to an earlier one.
- ``decontaminate words``, ``decontaminate meaning``: n texts or vectors against 2,000 evaluation items.

The line below a table fits the exponent by which processor seconds grow; 1 is linear. ``recall`` is the share of the
planted pairs at or above the threshold (counted exactly) that the search reports. A size whose run takes over 20 s
runs once.

``--what startup`` measures ``regrow --help``, and the time from a loaded model to the first node on disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORDS, VOCABULARY, ITEMS, DIMENSIONS, TOPICS = 60, 50_000, 2_000, 384, 200
JACCARD, COSINE = 0.8, 0.95
ONCE_S = 20.0


def make_texts(n: int, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts, and the planted pairs."""
    import numpy as np

    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(VOCABULARY) + 2.7)  # Zipf and Mandelbrot
    ranks = np.searchsorted(np.cumsum(share / share.sum()), rng.random((n, WORDS)))
    planted = []
    for j in range(10, n, 10):
        i = int(rng.integers(j))
        ranks[j] = ranks[i]
        ranks[j, rng.integers(0, WORDS, rng.integers(1, 3))] = rng.integers(1, VOCABULARY)
        planted.append((i, j))
    names = np.array([f"w{i}" for i in range(VOCABULARY + 1)], dtype=object)
    return [" ".join(row) for row in names[ranks]], planted


def make_vectors(n: int, seed: int) -> tuple[Any, list[tuple[int, int]]]:
    """Unit vectors (n, d) in float32, and the planted pairs."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def unit(shape: tuple[int, ...]) -> Any:
        rows = rng.standard_normal(shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        return rows

    common, topics = unit((DIMENSIONS,)), unit((TOPICS, DIMENSIONS))
    vectors = unit((n, DIMENSIONS))
    vectors *= math.sqrt(0.55)
    for start in range(0, n, 65_536):
        part = vectors[start : start + 65_536]
        part += math.sqrt(0.3) * topics[rng.integers(0, TOPICS, len(part))] + math.sqrt(0.15) * common
    planted = []
    for j in range(10, n, 10):
        i = int(rng.integers(j))
        cosine = rng.uniform(COSINE, COSINE + 0.02)
        base = vectors[i] / np.linalg.norm(vectors[i])
        away = unit((DIMENSIONS,))
        away -= (away @ base) * base
        vectors[j] = cosine * base + math.sqrt(1 - cosine**2) * away / np.linalg.norm(away)
        planted.append((i, j))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, planted


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Its result, wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def recall(planted: list[tuple[int, int]], pairs: Any, similarity: Callable[[int, int], float], least: float) -> float:
    wanted = [pair for pair in planted if similarity(*pair) >= least]
    found = {(p.first, p.second) for p in pairs}
    return sum(pair in found for pair in wanted) / len(wanted)


def grow(n: int, seed: int, folder: Path) -> dict[str, Any]:
    from regrow.engines.choose import make_engine
    from regrow.grow import stage
    from regrow.grow.config import GrowConfig
    from regrow.models.load import resolve_model

    topics = [f"topic {i}" for i in range(8)]
    cfg = GrowConfig(dialogues=max(8, n // 4), topics=topics, encoder="none", engine="dummy")
    model = resolve_model("smollm2")
    engine = make_engine("dummy", model, seed=seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done, wall, cpu = timed(lambda: stage.grow(cfg, model, folder, seed=seed, engine=engine))
    return {"n": done.candidates, "seconds": wall, "cpu": cpu, "before": before, "dialogues": done.dialogues}


def measure(what: str, n: int, seed: int) -> dict[str, Any]:
    """One measurement in this process."""
    from regrow.curate import decontaminate, dedup
    from regrow.curate.text import jaccard, shingles

    extra: dict[str, Any] = {}
    if what in ("grow", "curate"):
        with tempfile.TemporaryDirectory() as tmp:
            out = grow(n, seed, Path(tmp) / "corpus")
            if what == "curate":
                from regrow.curate.config import CurateConfig
                from regrow.curate.stage import curate

                cfg = CurateConfig(dedup_method="minhash", embedding_threshold=None)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                done, wall, cpu = timed(
                    lambda: curate(
                        Path(tmp) / "corpus", cfg, Path(tmp) / "clean", items=[], domain_rows=[], encoder=None, seed=0
                    )
                )
                out |= {"n": done.turns["in"], "seconds": wall, "cpu": cpu, "before": before}
        return out | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if what == "dedup words":
        texts, planted = make_texts(n, seed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs, wall, cpu = timed(lambda: dedup.minhash_pairs(texts, JACCARD, seed=seed))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def alike(i: int, j: int) -> float:
            return jaccard(shingles(texts[i], dedup.SHINGLE), shingles(texts[j], dedup.SHINGLE))

        extra = {"recall": recall(planted[-20_000:], pairs, alike, JACCARD), "pairs": len(pairs)}
    elif what == "dedup meaning":
        vectors, planted = make_vectors(n, seed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs, wall, cpu = timed(lambda: dedup.embedding_pairs(vectors, COSINE, seed=seed))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        same = recall(planted[-20_000:], pairs, lambda i, j: float(vectors[i] @ vectors[j]), COSINE)
        extra = {"recall": same, "pairs": len(pairs), "exact": n <= dedup.EXACT_LIMIT}
    elif what == "decontaminate words":
        texts, _ = make_texts(n + ITEMS, seed)
        probes = [decontaminate.Probe(str(i), "bench", "question", t) for i, t in enumerate(texts[n:])]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def search() -> int:
            index = decontaminate.NgramIndex(probes, 13)
            return sum(index.find(text) is not None for text in texts[:n])

        hits, wall, cpu = timed(search)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        extra = {"hits": hits}
    else:
        vectors, _ = make_vectors(n + ITEMS, seed)

        class Given:
            def encode(self, texts: Any, **_: Any) -> Any:
                return vectors[n:]

        probes = [decontaminate.Probe(str(i), "bench", "question", "x") for i in range(ITEMS)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        index = decontaminate.EmbeddingIndex(probes, Given(), 0.9)
        hits, wall, cpu = timed(lambda: sum(hit is not None for hit in index.find(vectors[:n], "question")))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        extra = {"hits": hits}
    return {"n": n, "seconds": wall, "cpu": cpu, "before": before, "peak": peak, **extra}


SIZES = {
    "grow": [100, 1_000, 10_000, 100_000],
    "curate": [100, 1_000, 10_000, 100_000],
    "dedup words": [1_000, 10_000, 100_000, 1_000_000],
    "dedup meaning": [1_000, 10_000, 100_000, 1_000_000],
    "decontaminate words": [1_000, 10_000, 100_000, 1_000_000],
    "decontaminate meaning": [1_000, 10_000, 100_000, 1_000_000],
}


def startup(model: str, repeats: int) -> None:
    """`regrow --help`, and a loaded model's first node, as a table."""
    help_s = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from regrow.cli import main; main()", "--help"], check=True, capture_output=True
        )
        help_s.append(time.perf_counter() - began)
    rows = {"regrow --help": help_s[1:]}
    for engine in ("auto", "transformers"):
        for _ in range(repeats):
            command = [sys.executable, __file__, "--first", engine, "--model", model]
            said = _child(command)
            for name in ("first node", "load"):
                rows.setdefault(f"{said['engine']}: {name}", []).append(said[name])
    print(f"\n{_machine()}, {repeats} repeats\n")
    print("| what | s, median | min | max |\n| --- | ---: | ---: | ---: |")
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")


def first_node(engine_name: str, model: str) -> dict[str, Any]:
    """Seconds from a loaded model (and encoder) to the first expansion on disk."""
    from regrow.engines.choose import make_engine
    from regrow.grow.config import GrowConfig
    from regrow.grow.stage import grow as grow_stage
    from regrow.grow.store import Store
    from regrow.models.embed import load_encoder
    from regrow.models.load import resolve_model

    class Done(Exception):
        pass

    began = time.perf_counter()
    resolved = resolve_model(model)
    engine = make_engine(engine_name, resolved)  # type: ignore[arg-type]
    encoder = load_encoder("minilm")
    loaded = time.perf_counter()
    commit = Store.commit

    def stop(self: Store, expansion: Any) -> None:
        commit(self, expansion)
        raise Done

    Store.commit = stop  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as tmp:
        try:
            grow_stage(GrowConfig(), resolved, Path(tmp) / "corpus", seed=0, engine=engine, encoder=encoder)
        except Done:
            seconds = time.perf_counter() - loaded
    return {"engine": engine.info.name, "first node": seconds, "load": loaded - began}


def _child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return found


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    python, load = platform.python_version(), os.getloadavg()[0]
    return f"{cpu}, {os.cpu_count()} CPUs, Python {python}, numpy {version('numpy')}, load {load:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=list(SIZES), choices=[*SIZES, "startup"])
    parser.add_argument("--largest", type=int, default=10**6, help="sizes above are left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2", help="for startup")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--first", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, n, seed = args.one
        print("RESULT " + json.dumps(measure(what, int(n), int(seed))))
        return
    if args.first:
        print("RESULT " + json.dumps(first_node(args.first, args.model)))
        return
    for what in args.what:
        if what == "startup":
            startup(args.model, args.repeats)
            continue
        rows: list[list[dict[str, Any]]] = []
        for n in SIZES[what]:
            if n > args.largest:
                continue
            runs: list[dict[str, Any]] = []
            while len(runs) < args.repeats and not (runs and runs[-1]["seconds"] > ONCE_S):
                runs.append(_child([sys.executable, __file__, "--one", what, str(n), str(len(runs))]))
                print(f"{what} {n}: {runs[-1]}", file=sys.stderr, flush=True)
            rows.append(runs)
        table(what, rows)


def table(what: str, rows: list[list[dict[str, Any]]]) -> None:
    print(f"\n**{what}** ({_machine()})\n")
    print("| n | runs | s, median | CPU s | CPU microseconds a row | peak MB | grown by MB | recall |")
    print("| ---: |" + " ---: |" * 7)
    points = []
    for runs in rows:
        n, seconds = (statistics.median(r[k] for r in runs) for k in ("n", "seconds"))
        peak, more = max(r["peak"] for r in runs) / 1024, max(r["peak"] - r["before"] for r in runs) / 1024
        found = min((r["recall"] for r in runs if "recall" in r), default=None)
        shown = "" if found is None else f"{found:.4f}" + (" (exact)" if runs[0].get("exact") else "")
        cpu = statistics.median(r["cpu"] for r in runs)
        points.append((math.log(n), math.log(cpu)))
        print(
            f"| {n:,.0f} | {len(runs)} | {seconds:.2f} | {cpu:.2f} | {1e6 * cpu / n:.0f} | {peak:,.0f} "
            f"| {more:,.0f} | {shown} |"
        )
    if len(points) > 1:
        (a, s), (b, t) = points[-2:]
        mean_n, mean_s = (statistics.fmean(p[i] for p in points) for i in (0, 1))
        fit = sum((x - mean_n) * (y - mean_s) for x, y in points) / sum((x - mean_n) ** 2 for x, _ in points)
        print(f"\nCPU seconds grow as n to the {(t - s) / (b - a):.2f} over the last step, {fit:.2f} over all sizes.")


if __name__ == "__main__":
    main()

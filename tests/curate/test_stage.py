from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regrow.curate.config import CurateConfig
from regrow.curate.stage import curate
from regrow.errors import DataError, RecipeError, RunError
from regrow.evaluate.items import Item
from regrow.grow.corpus import WATCHED, corpus_facts, read_dialogues, read_nodes
from regrow.rows.row import Row
from tests.curate.forests import Tree, grow_by_hand

WORDS_ONLY = {"dedup_method": "minhash", "embedding_threshold": None, "holdout_dialogues": 0}

TREES: list[Tree] = [
    {
        "What is the tallest mountain on Earth?": {
            "Measured from the sea it is Mount Everest in the Himalaya.": {
                "Who climbed it before all others?": {
                    "Edmund Hillary and Tenzing Norgay stood on top in 1953.": {},
                    "The first ascent that we are sure of was made by Hillary and Norgay.": {},
                },
                "How high is that exactly?": {"Its summit lies 8849 metres above sea level.": {}},
            },
            "!bad": {},
        },
        "Why is the sky blue in the daytime?": {
            "Air scatters short wavelengths of sunlight more than long ones.": {
                "Then why is it red at dusk?": {"Light then crosses more air and most of the blue is gone.": {}}
            }
        },
    },
    {
        "How do bees find their way home?": {
            "They steer by the sun and remember landmarks near the hive.": {
                "Do they sleep at night?": {"Yes, foragers rest for hours with hanging antennae.": {}}
            }
        },
        "What do penguins eat?": {
            "Mostly krill, squid and small fish caught while diving.": {
                "And what eats penguins?": {"Leopard seals, orcas and some large birds do.": {}}
            }
        },
    },
]


def run(tmp_path: Path, trees: Sequence[Tree] = TREES, *, items: Sequence[Item] = (), rows: Sequence[Row] = (),
        encoder: Any = None, seed: int = 0, role: str = "chat", top_k: int = 0,
        **cfg: Any) -> tuple[Any, Path]:  # fmt: skip
    corpus = grow_by_hand(tmp_path / "grown", trees, role=role, top_k=top_k)
    out = tmp_path / "clean"
    done = curate(corpus, CurateConfig(**{**WORDS_ONLY, **cfg}), out, items=items, domain_rows=rows, encoder=encoder,
                  seed=seed)  # fmt: skip
    return done, out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(folder: Path) -> list[str]:
    return [d.id for d in read_dialogues(folder)]


def test_a_clean_corpus_stays_as_it_is(tmp_path: Path) -> None:
    done, out = run(tmp_path, top_k=3)
    assert ids(out) == ids(tmp_path / "grown")
    before, after = list(read_nodes(tmp_path / "grown")), list(read_nodes(out))
    assert [n.top_ids for n in after] == [n.top_ids for n in before]
    assert [n.kept for n in after] == [n.kept for n in before]
    assert [n.reason for n in after] == [n.reason for n in before]
    assert done.dialogues == {"in": 6, "kept": 6, "held_out": 0, "evaluated": 0}
    assert done.dropped == {}
    paths = {n.id: n.n_paths for n in after}
    assert (paths["t00/0"], paths["t00/0/0/0"], paths["t00/0/0/0/1"], paths["t00/0/1"]) == (3, 2, 1, 0)


def test_a_dropped_turn_takes_what_grew_from_it(tmp_path: Path) -> None:
    item = Item(
        "everest", "facts", "earth", "answer", [{"role": "user", "content": "How high is that exactly"}], answers=["x"]
    )
    done, out = run(tmp_path, items=[item])
    assert set(ids(tmp_path / "grown")) - set(ids(out)) == {"t00/0/0/1/0"}
    nodes = {n.id: n for n in read_nodes(out)}
    assert (nodes["t00/0/0/1"].kept, nodes["t00/0/0/1"].reason) == (False, "evaluation item")
    assert (nodes["t00/0/0/1/0"].kept, nodes["t00/0/0/1/0"].reason) == (False, "follows a dropped turn")
    assert nodes["t00/0/0/1"].n_paths == 0
    assert nodes["t00/0/0"].n_paths == 2
    assert nodes["t00/0/1"].reason == "too short", "what growing dropped keeps its reason"
    written = {r["id"]: r for r in lines(out / "dropped.jsonl")}
    assert written["t00/0/0/1"]["evidence"]["item"] == "everest"
    assert written["t00/0/0/1/0"]["evidence"] == {"turn": "t00/0/0/1"}
    assert done.dropped["evaluation item"] == {"turns": 1, "dialogues": 1, "bytes": len("How high is that exactly?")}
    assert json.loads((out / "curate.json").read_text()) == done.to_dict()


def test_a_turn_without_any_dialogue_left_goes_too(tmp_path: Path) -> None:
    _, out = run(
        tmp_path, items=[Item("q", "s", "d", "answer", [{"role": "user", "content": "And what eats penguins?"}])]
    )
    nodes = {n.id: n for n in read_nodes(out)}
    assert nodes["t01/1"].reason == nodes["t01/1/0"].reason == "no dialogue left"


def test_rows_of_yours_are_not_replayed(tmp_path: Path) -> None:
    row = Row("mine", [{"role": "user", "content": "what do penguins EAT"}, {"role": "assistant", "content": "Fish."}])
    done, out = run(tmp_path, rows=[row])
    assert "t01/1/0/0/0" not in ids(out)
    assert done.dropped["repeats a row of yours"]["turns"] == 1


def test_low_quality_is_dropped(tmp_path: Path) -> None:
    loop = "and then he said " * 12
    more: Tree = {"Tell me a story please": {loop: {}}, "Make it louder": {"!! ?? ** && %%": {}}}
    done, out = run(tmp_path, [*TREES, more], min_answer_tokens=3)
    assert done.dropped["repetition"]["turns"] == 1
    assert "t02/0/0" not in ids(out)
    assert {r["reason"] for r in lines(out / "dropped.jsonl") if r["id"].startswith("t02")} >= {
        "repetition",
        "no dialogue left",
    }


LONG = (
    "The heart is a muscle that pumps blood through the body, about seventy times a minute in a grown person at rest"
)


@pytest.mark.parametrize(("method", "gone"), [("minhash", True), ("none", False)])
def test_duplicates_across_bushes_keep_the_earlier(tmp_path: Path, method: str, gone: bool) -> None:
    trees: list[Tree] = [
        {
            "What does the heart do?": {LONG + ".": {}},
            "Unrelated question about tea?": {"Green tea is not fermented.": {}},
        },
        {"What does the heart do": {LONG + " or so.": {}}},
    ]
    _, out = run(tmp_path, trees, dedup_method=method)
    assert ("t01/0/0" not in ids(out)) is gone
    assert "t00/0/0" in ids(out)
    if gone:
        [record] = [r for r in lines(out / "dropped.jsonl") if r["id"] == "t01/0/0"]
        assert record["reason"] == "near-duplicate"
        assert record["evidence"]["of"] == "t00/0/0"
        assert record["evidence"]["by"] == "words"
        assert record["evidence"]["similarity"] >= 0.8


def test_siblings_are_compared_by_their_answers_alone(tmp_path: Path) -> None:
    question = (
        "Please explain in a few plain words, for someone who has never heard of it before, what photosynthesis does?"
    )
    _, out = run(tmp_path, [{question: {"It feeds plants.": {}, "It makes oxygen.": {}, "It feeds plants!": {}}}])
    assert ids(out) == ["t00/0/0", "t00/0/1"]


class WordBag:
    def __init__(self) -> None:
        self.seen = 0

    def encode(self, texts: Sequence[str], *, batch_size: int = 64, progress: Any = None) -> np.ndarray:
        import zlib

        self.seen += len(texts)
        out = np.zeros((len(texts), 256), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace("?", "").replace(".", "").split():
                out[row, zlib.crc32(word.encode()) % 256] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def test_duplicates_by_meaning(tmp_path: Path) -> None:
    trees: list[Tree] = [
        {
            "What makes bread rise?": {"Yeast turns sugar into gas.": {}},
            "Where do storks winter?": {"South of the desert.": {}},
        },
        {"What makes rise bread?": {"Sugar yeast gas into turns.": {}}},
    ]
    done, out = run(tmp_path, trees, dedup_method="embedding", dedup_threshold=0.98, encoder=WordBag())
    assert ids(out) == ["t00/0/0", "t00/1/0"]
    assert done.dropped["near-duplicate"]["turns"] == 1
    _, untouched = run(tmp_path / "b", trees, dedup_method="minhash")
    assert len(ids(untouched)) == 3


def test_no_encoder_is_needed_or_asked_when_settings_do_without(tmp_path: Path) -> None:
    encoder = WordBag()
    run(tmp_path, encoder=encoder)
    assert encoder.seen == 0
    with pytest.raises(RecipeError, match=r"curate\.dedup_method"):
        run(tmp_path / "b", dedup_method="both")


def bushes(n: int, per_bush: int = 1, trees: int = 2) -> list[Tree]:
    rng = np.random.default_rng(5)

    def sentence() -> str:
        return " ".join("".join(rng.choice(list("abcdefghij"), 6)) for _ in range(9))

    return [{sentence(): {sentence(): {} for _ in range(per_bush)} for _ in range(n // trees)} for _ in range(trees)]


@pytest.mark.parametrize(("amount", "items", "held"), [(0, 0, 0), (0.2, 8, 12), (6, 6, 9), (5, 5, 9), (0.9, 20, 30)])
def test_whole_bushes_are_held_out(tmp_path: Path, amount: float, items: int, held: int) -> None:
    done, out = run(tmp_path, bushes(20, per_bush=3), holdout_dialogues=amount, holdout_per_bush=2)
    own = lines(out / "own_dialogues.jsonl")
    assert len(own) == items == done.dialogues["evaluated"]
    assert done.dialogues["held_out"] == held
    assert done.dialogues["kept"] == 60 - held
    kept_bushes = {d.bush for d in read_dialogues(out)}
    for line in own:
        item = Item(**line)
        assert (item.kind, item.suite) == ("dialogue", "own-dialogues")
        assert item.id.rsplit("/", 1)[0] not in kept_bushes
    assert len({i["meta"]["tree"] for i in own}) == (2 if items else 0), "trees take turns"
    assert {n.reason for n in read_nodes(out) if not n.kept} == ({"held out"} if held else set())


def test_the_seed_chooses_what_is_held_out(tmp_path: Path) -> None:
    def own(seed: int, name: str) -> list[str]:
        _, out = run(tmp_path / name, bushes(20), holdout_dialogues=4, seed=seed)
        return [r["id"] for r in lines(out / "own_dialogues.jsonl")]

    assert own(1, "a") == own(1, "b") != own(2, "c")


def test_what_nearly_repeats_a_held_out_bush_is_not_trained_on(tmp_path: Path) -> None:
    trees = bushes(8)
    # Every first question also exists a second time, as the first question of a bush with another answer.
    twins: list[Tree] = [
        {question + " now": {f"other words {i} follow here": {}} for i, question in enumerate(t)} for t in trees
    ]
    done, out = run(tmp_path, [*trees, *twins], holdout_dialogues=3, dedup_method="none")
    held = {r["messages"][0]["content"].removesuffix(" now") for r in lines(out / "own_dialogues.jsonl")}
    assert len(held) >= 2
    kept = {d.messages[0]["content"].removesuffix(" now") for d in read_dialogues(out)}
    assert not held & kept
    assert done.dropped["near a held-out dialogue"]["turns"] >= 1
    near = [r for r in lines(out / "dropped.jsonl") if r["reason"] == "near a held-out dialogue"]
    assert all(r["evidence"]["similarity"] >= 0.8 for r in near)


def test_the_same_call_writes_the_same_bytes_and_replaces_only_its_own(tmp_path: Path) -> None:
    corpus = grow_by_hand(tmp_path / "grown", TREES)
    cfg = CurateConfig(**{**WORDS_ONLY, "holdout_dialogues": 1})
    out = tmp_path / "clean"

    def again() -> dict[str, bytes]:
        curate(corpus, cfg, out, items=[], domain_rows=[], encoder=None, seed=3)
        return {p.name: p.read_bytes() for p in sorted(out.iterdir())}

    first = again()
    (tmp_path / ".clean.partial").mkdir()
    assert again() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "grown"]
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        curate(corpus, cfg, foreign, items=[], domain_rows=[], encoder=None, seed=3)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_an_interruption_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = grow_by_hand(tmp_path / "grown", TREES)
    out = tmp_path / "clean"
    cfg = CurateConfig(**WORDS_ONLY)
    curate(corpus, cfg, out, items=[], domain_rows=[], encoder=None, seed=3)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regrow.curate.stage.write_json_lines", full)
    with pytest.raises(OSError, match="No space"):
        curate(
            corpus,
            CurateConfig(**{**WORDS_ONLY, "holdout_dialogues": 1}),
            out,
            items=[],
            domain_rows=[],
            encoder=None,
            seed=3,
        )
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not (tmp_path / ".clean.partial").exists()


def test_an_empty_result_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answer too short"):
        run(tmp_path, min_answer_tokens=1000)
    assert not (tmp_path / "clean").exists()


def test_the_result_loads_as_a_dataset(tmp_path: Path) -> None:
    from datasets import load_dataset

    _, out = run(tmp_path, holdout_dialogues=1)
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["id"][:] == ids(out)
    assert corpus_facts(out)["counts"]["dialogues"] == len(ids(out))
    assert corpus_facts(out)["counts"]["kept"] == sum(n.kept for n in read_nodes(out))


def test_plain_text_trees(tmp_path: Path) -> None:
    leaf = "Rivers carry sediment from the hills into the plains and build fertile deltas there. "
    trees: list[Tree] = [
        {leaf: {"Some of them dry up in summer. ": {}, "Others freeze over in the long winter months. ": {}}},
        {"Glaciers move slowly downhill under their own weight. ": {"They grind the rock beneath. ": {}}},
    ]
    asked = "build fertile deltas there. Some of them dry up in summer"
    item = Item("river", "facts", "earth", "answer", [{"role": "user", "content": asked}])
    done, out = run(tmp_path, trees, role="text", items=[item], holdout_dialogues=1)
    assert "t00/0/0" not in ids(out), "an overlap across the border of two nodes is found"
    own = lines(out / "own_dialogues.jsonl")
    assert [r["meta"]["kind"] for r in own] == ["text"]
    assert done.dialogues == {"in": 3, "kept": 1, "held_out": 1, "evaluated": 1}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=3),
    minimum=st.integers(0, 12),
    held=st.one_of(st.integers(0, 5), st.floats(0, 0.9)),
    seed=st.integers(0, 99),
)
def test_nothing_is_lost(shape: list[list[int]], minimum: int, held: float, seed: int, tmp_path_factory: Any) -> None:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(str(w) for w in rng.choice(["ab", "cd", "ef", "gh", "ij", "kl"], int(rng.integers(1, 6))))

    trees = [
        {f"{text()} {i} {j}": {f"{text()} {k}": {} for k in range(n)} for j, n in enumerate(t)}
        for i, t in enumerate(shape)
    ]
    folder = tmp_path_factory.mktemp("forest")
    try:
        done, out = run(folder, trees, min_answer_tokens=minimum, holdout_dialogues=held, seed=seed)
    except DataError:
        assert not (folder / "clean").exists()
        return
    lost = sum(n["dialogues"] for n in done.dropped.values())
    assert done.dialogues["kept"] + lost == done.dialogues["in"]
    assert len(lines(out / "dropped.jsonl")) + done.turns["kept"] == done.turns["in"]
    dialogues = read_dialogues(out)
    assert len(dialogues) == done.dialogues["kept"]
    for node in read_nodes(out):
        assert node.n_paths == sum(node.id in d.node_ids for d in dialogues)
        assert node.kept == (node.n_paths > 0)


def test_paraphrases_of_items_go_by_meaning_only_when_asked(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Penguins eat what do"}]
    item = Item("penguin", "facts", "animals", "answer", asked, answers=["krill"])
    for name, threshold, gone in (("off", None, False), ("strict", 0.99, True), ("loose", 0.5, True)):
        encoder = WordBag()
        done, out = run(tmp_path / name, items=[item], embedding_threshold=threshold, encoder=encoder)
        assert ("t01/1/0/0/0" not in ids(out)) is gone
        assert (encoder.seen > 0) is gone
        assert done.compared_with == {"items": 1, "your_rows": 0}
    strict, loose = (json.loads((tmp_path / n / "clean/curate.json").read_text()) for n in ("strict", "loose"))
    assert strict["dropped"]["evaluation item"]["turns"] <= loose["dropped"]["evaluation item"]["turns"]
    [record] = [r for r in lines(tmp_path / "strict/clean/dropped.jsonl") if r["reason"] == "evaluation item"]
    assert record["evidence"]["similarity"] >= 0.99


def test_ngram_and_minhash_threshold_reach_their_passes(tmp_path: Path) -> None:
    text = "Light then crosses more air and is split into all the colours that a rainbow has to offer us today"
    item = Item("light", "s", "d", "answer", [{"role": "user", "content": text}])
    for name, ngram, gone in (("a", 13, False), ("b", 6, True)):
        _, out = run(tmp_path / name, items=[item], ngram=ngram)
        assert ("t00/1/0/0/0" not in ids(out)) is gone
    twins: list[Tree] = [
        {"What does the heart do?": {LONG: {}}},
        {"What does the heart do?": {LONG + " and in sleep": {}}},
    ]
    for name, threshold, n in (("c", 0.8, 1), ("d", 0.99, 2)):
        _, out = run(tmp_path / name, twins, minhash_threshold=threshold)
        assert len(ids(out)) == n


@pytest.mark.parametrize(("given", "held", "tokens"), [(4, 4, 1024), (4.0, 4, 1024), (0.25, 0.25, 0), (0, 0, 0)])
def test_holdout_is_a_number_or_a_share(given: float, held: float, tokens: int) -> None:
    cfg = CurateConfig(holdout_dialogues=given)
    assert (cfg.holdout_dialogues, type(cfg.holdout_dialogues), cfg.holdout_tokens) == (held, type(held), tokens)
    with pytest.raises(ValueError, match="below 1"):
        CurateConfig(holdout_dialogues=2.5)


def _bushes(n: int, words: str) -> Tree:
    """Bushes of unlike words; distinct for distinct ``words``."""
    return {
        f"{words} question {i} {i * 37} what {i * 11}": {f"{words} answer {i * 5} says {i * 91} and {i}": {}}
        for i in range(n)
    }


def test_watched_dialogues_are_held_out_apart_from_the_evaluation(tmp_path: Path) -> None:
    trees = [_bushes(16, "river stone"), _bushes(12, "copper law"), _bushes(1, "single")]
    _, out = run(tmp_path, trees, **WORDS_ONLY | {"holdout_dialogues": 5, "watch_dialogues": 3})
    watched = read_dialogues(out, WATCHED)
    own = [json.loads(line)["id"] for line in (out / "own_dialogues.jsonl").read_text().splitlines()]
    kept = {d.id for d in read_dialogues(out)}
    by_topic = {t: sum(d.topic == t for d in watched) for t in ("topic 0", "topic 1", "topic 2")}
    assert by_topic["topic 0"] == 3 and 1 <= by_topic["topic 1"] <= 3 and by_topic["topic 2"] == 0
    assert not {d.id for d in watched} & (kept | set(own)) and not set(own) & kept
    nodes = {n.id: n for n in read_nodes(out)}
    assert {nodes[d.node_ids[0]].reason for d in watched} == {"held out to be watched"}
    summary = json.loads((out / "curate.json").read_text())
    assert summary["dialogues"]["watched"] == len(watched)
    assert len(kept) + len(own) + len(watched) == 29


def test_what_nearly_repeats_a_watched_dialogue_is_dropped(tmp_path: Path) -> None:
    tree = _bushes(8, "river stone")
    twins = {f"{question} please": dict(answer) for question, answer in tree.items()}
    cfg = WORDS_ONLY | {"watch_dialogues": 2, "dedup_method": "none", "minhash_threshold": 0.5}
    _, out = run(tmp_path, [{**tree, **twins}], **cfg)
    asked = {d.messages[0]["content"].removesuffix(" please") for d in read_dialogues(out, WATCHED)}
    left = {d.messages[0]["content"].removesuffix(" please") for d in read_dialogues(out)}
    assert len(asked) == 2 and not asked & left


def test_a_corpus_that_grew_is_held_out_as_before(tmp_path: Path) -> None:
    cfg = CurateConfig(**WORDS_ONLY | {"holdout_dialogues": 4, "watch_dialogues": 2})
    old = [_bushes(12, "river stone"), _bushes(8, "copper law")]
    small = grow_by_hand(tmp_path / "small", old)
    first = tmp_path / "first"
    curate(small, cfg, first, items=[], domain_rows=[], encoder=None, seed=1)
    held = json.loads((first / "own_dialogues.jsonl").read_text().splitlines()[0])["messages"]
    repeated: Tree = {held[0]["content"]: {held[1]["content"]: {}}}
    fresh = _bushes(6, "glass orchard")
    large = grow_by_hand(tmp_path / "large", [*old, {**fresh, **repeated}])
    second = tmp_path / "second"
    curate(large, cfg, second, items=[], domain_rows=[], encoder=None, seed=1, earlier=first)
    assert (second / "own_dialogues.jsonl").read_text() == (first / "own_dialogues.jsonl").read_text()
    assert read_dialogues(second, WATCHED) == read_dialogues(first, WATCHED)
    one, two = ({d.id for d in read_dialogues(folder)} for folder in (first, second))
    assert one < two and {i.split("/")[0] for i in two - one} == {"t02"}
    assert len(two - one) == 6, "the repetition of a held-out dialogue is out"


def test_watching_needs_two_bushes_of_a_topic(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no topic has two"):
        run(tmp_path, [_bushes(1, "one"), _bushes(1, "two")], **WORDS_ONLY | {"watch_dialogues": 2})

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from regrow.engines.base import EngineStats, KeepsPrefixes, Request, SampleParams
from regrow.engines.dummy import DummyEngine
from regrow.engines.hf import TransformersEngine
from regrow.engines.network import Network
from regrow.engines.prefill import Prefill
from regrow.engines.prefixes import PrefixStore
from tests.engines.helpers import ids, prompts, requests
from tests.engines.test_transformers import MODELS, naive
from tests.fixtures.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def tok():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=MODELS)
def model(request, tok):
    return MODELS[request.param](len(tok))


def block(count):
    """A cache of 8 bytes a token."""
    return [torch.arange(2 * count, dtype=torch.float32).reshape(1, 2, count, 1)]


def held(pieces):
    return [t for stretch, used in pieces for t in stretch.ids[:used]]


# -- the store ----------------------------------------------------------------------------------------------------


def test_finds_the_longest_beginning():
    store = PrefixStore(10_000)
    trunk = [store.add([], [1, 2, 3, 4], block(4))]
    store.add(trunk, [5, 6], block(2), "a")
    longer = store.add(trunk, [5, 7, 8], block(3), "a")
    store.add([(trunk[0][0], 2)], [9, 9], block(2), "b")
    assert held(store.find([1, 2, 3, 4, 5, 7, 8, 1])) == [1, 2, 3, 4, 5, 7, 8], "siblings that begin alike"
    assert held(store.find([1, 2, 3, 4, 5, 6])) == [1, 2, 3, 4, 5, 6]
    assert held(store.find([1, 2, 9, 9, 9])) == [1, 2, 9, 9], "a branch in the middle"
    assert held(store.find([1, 2, 3, 9])) == [1, 2, 3]
    assert store.find([7, 1]) == [] and store.find([]) == []
    below = store.add([*trunk, (longer[0], 2)], [8, 8], block(2), "c")
    assert below and held(store.find([1, 2, 3, 4, 5, 7, 8, 8])) == [1, 2, 3, 4, 5, 7, 8, 8], "past a longer sibling"
    assert store.bytes == 8 * (4 + 2 + 3 + 2 + 2)


def test_what_is_not_continued_is_freed_at_once():
    store = PrefixStore(10_000)
    prompt = [1, 2, 3]
    end = [store.add([], prompt, block(3), "t")]
    for child in ([4, 5, 6, 7], [4, 8], [9]):
        store.add(end, child, block(len(child)), "t")
    store.retain("t", prompt, [[1, 2, 3, 4, 5], [1, 2, 3, 9]])
    assert store.bytes == 8 * (3 + 2 + 1), "the dropped sibling and the trimmed end are gone"
    for key, path in (("t/0", [1, 2, 3, 4, 5]), ("t/1", [1, 2, 3, 9])):
        asked = [*path, 0, 0]
        at = store.find(asked)
        assert held(at) == path
        end = [*at, store.add(at, [0, 0], block(2), key)]
        store.add(end, [6], block(1), key)
        store.retain(key, asked, [])
    assert store.bytes == 0 and len(store) == 0, "a branch that ends takes along what only it needed"


def test_a_prefix_that_two_wait_for_stays_for_the_second():
    store = PrefixStore(10_000)
    end = [store.add([], [1, 2], block(2), "")]
    for key in ("a", "b"):
        store.add(end, [3, 4], block(2), key)
    for key in ("a", "b"):
        store.retain(key, [1, 2], [[1, 2, 3, 4]])
    store.retain("a/0", [1, 2, 3, 4, 0], [])
    assert held(store.find([1, 2, 3, 4, 0])) == [1, 2, 3, 4]
    store.retain("b/0", [1, 2, 3, 4, 0], [])
    store.clear()
    assert store.bytes == 0


def test_the_budget_is_kept_and_the_oldest_leaf_goes_first():
    store = PrefixStore(8 * 10)
    trunk = [store.add([], [1, 2, 3, 4], block(4))]
    store.add(trunk, [5, 5, 5], block(3), "old")
    store.add(trunk, [6, 6, 6], block(3), "new")
    store.find([1, 2, 3, 4, 5, 5, 5])
    store.add(trunk, [7], block(1), "newest")
    assert held(store.find([1, 2, 3, 4, 6, 6, 6])) == [1, 2, 3, 4], "the one not used since is gone"
    assert held(store.find([1, 2, 3, 4, 5, 5, 5])) == [1, 2, 3, 4, 5, 5, 5]
    assert store.evicted_tokens == 3 and store.bytes == 64 <= store.limit and store.peak <= store.limit
    assert store.add(trunk, list(range(11)), block(11)) is None, "larger than everything"
    store.resize(8 * 4)
    assert store.bytes <= 32
    assert PrefixStore().add([], [1], block(1)) is None


def test_any_order_of_work_leaves_the_books_right():
    rng = random.Random(0)
    store = PrefixStore(8 * 200)
    for step in range(2000):
        path = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        found = store.find(path)
        assert held(found) == path[: len(held(found))]
        if len(held(found)) < len(path):
            rest = path[len(held(found)) :]
            store.add(found, rest, block(len(rest)), str(step % 40))
        if rng.random() < 0.2:
            store.retain(str(rng.randrange(40)), path, [[*path, 1]] if rng.random() < 0.5 else [])
        assert store.bytes == sum(s.bytes for s in store._all()) <= store.limit
    assert store.evicted_tokens > 0


# -- the engine ---------------------------------------------------------------------------------------------------


def test_logits_on_top_of_kept_caches_are_those_of_a_plain_forward_pass(model, tok):
    """Prompts that continue others by ragged tails, through sliding windows, capped logits and learned positions."""
    network, store, stats = Network(model), PrefixStore(2**30), EngineStats()
    prefill = Prefill(network, store, stats)
    first = prompts(6, len(tok), shared=18)
    logits, _ = prefill.run(first, ["x"] * 6)
    second = [(*p, *q[18:], *p[:i]) for i, (p, q) in enumerate(pairwise(first))] + [first[0]]
    before = stats.prefill_tokens
    again, _ = prefill.run(second, ["y"] * len(second))
    assert stats.prefill_tokens - before == sum(len(p) - len(q) for p, q in zip(second[:5], first, strict=False)) + 1
    for row, prompt in zip([*logits, *again], [*first, *second], strict=True):
        assert torch.allclose(row, naive(model, prompt)[-1], atol=1e-5)


def test_a_beginning_that_prompts_share_is_run_once(tok):
    """Three levels of sharing in one wave: nothing but the tails is run twice."""
    network, stats = Network(tiny_llama(vocab_size=len(tok))), EngineStats()
    top, left, right = (tuple(p) for p in prompts(3, len(tok), shared=0, seed=9))
    top, left, right = top * 4, left * 9, right * 9
    asked = [(*top, *left, 5), (*top, *left, 6, 7), (*top, *right, 5), (*top, *right, 8), (*top, 5)]
    logits, _ = Prefill(network, PrefixStore(2**30), stats).run(asked, [None] * 5)
    assert stats.prefill_tokens == len(top) + len(left) + len(right) + (1 + 2 + 1 + 1 + 1)
    whole = EngineStats()
    plain, _ = Prefill(network, PrefixStore(0), whole).run(asked, [None] * 5)
    assert whole.prefill_tokens > sum(map(len, asked)), "no room to keep anything: each is run whole"
    assert torch.allclose(logits, plain, atol=1e-5)


@pytest.mark.parametrize("memory", [1.0, 0.0004])
def test_children_draw_the_same_with_and_without_reuse(model, tok, memory):
    """Two layers of a tree, completions kept; large and tiny memory, and none kept."""
    found = []
    for reuse in (True, False):
        engine = TransformersEngine.from_model(model, tok, batch_size=6, memory_gib=memory, reuse=reuse)
        params = SampleParams(10, stop_token_ids=(2, 5, 9))
        roots = [
            Request(r.key, r.prompt_ids, r.n, r.seed, params, "completions") for r in requests(prompts(5, len(tok)))
        ]
        above = ids(engine.sample(roots))
        asked = []
        for i, root in enumerate(roots):
            paths = [(*root.prompt_ids, *c) for c in above[i][::2]]
            engine.retain(root.key, root.prompt_ids, paths)
            asked += [
                Request(f"{root.key}/{k}", (*p, 3, 4), 3, 77 * i + k, params, "prompt") for k, p in enumerate(paths)
            ]
        before = engine.stats.prefill_tokens
        below = ids(engine.sample(asked))
        found.append((above, below))
        again = engine.stats.prefill_tokens - before
        whole = sum(len(r.prompt_ids) for r in asked)
        if reuse and memory == 1.0:
            # Markers, and a last token that met the cap and was never run.
            cut = sum(len(c) == 10 for i in above for c in above[i][::2])
            assert again == 2 * len(asked) + cut
            assert engine.stats.evicted_tokens == 0
        elif reuse:
            assert engine.stats.evicted_tokens > 0 and again > 3 * len(asked)
            assert engine.stats.prefix_bytes <= engine._memory
        else:
            assert again > whole / 3
        for r in asked:
            engine.retain(r.key, r.prompt_ids, [])
        if reuse and memory == 1.0:
            assert engine._prefixes._owned == {}
        engine.forget()
        assert engine._prefixes.bytes == 0
    assert found[0] == found[1]


def test_crowded_says_so_before_anything_is_lost(tok):
    engine = TransformersEngine.from_model(tiny_llama(vocab_size=len(tok)), tok, batch_size=4, memory_gib=0.001)
    asked = [Request(r.key, r.prompt_ids, 4, r.seed, SampleParams(30), "completions") for r in
             requests(prompts(30, len(tok)))]  # fmt: skip
    assert not engine.crowded()
    seen = [(engine.crowded(), engine.stats.evicted_tokens) for _ in engine.sample(asked)]
    assert (True, 0) in seen and seen[-1][1] > 0


def test_who_keeps_prefixes(tok):
    assert isinstance(TransformersEngine.from_model(tiny_llama(vocab_size=len(tok)), tok), KeepsPrefixes)
    assert not isinstance(DummyEngine(), KeepsPrefixes)

"""The engine that asks a server, against one that behaves and misbehaves on purpose, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from regrow.engines.base import Engine, Request, SampleParams, ScoreRow
from regrow.engines.config import ServerConfig
from regrow.engines.dialects import LLAMA_CPP, SGLANG, TGI, VLLM, Malformed, dialect_of
from regrow.engines.dummy import DummyEngine
from regrow.engines.hf import TransformersEngine
from regrow.engines.openai import OpenAIEngine
from regrow.errors import EngineError
from regrow.models.load import ResolvedModel
from tests.engines.gtest import filtered, p_value
from tests.engines.helpers import prompts, requests
from tests.engines.test_transformers import sharp_llama
from tests.fixtures.completions_server import CompletionsServer, Fault
from tests.fixtures.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def reference(tokenizer):
    return TransformersEngine.from_model(tiny_llama(vocab_size=len(tokenizer)), tokenizer)


@pytest.fixture
def model(tiny_model_dir):
    return ResolvedModel(tiny_model_dir, "tiny", "abc")


@pytest.fixture
def connect(model):
    """Engines on a server, closed in the end."""
    opened = []

    def make(server, **keys):
        engine = OpenAIEngine(model, ServerConfig(**({"url": server.url, "cache": False, "retries": 3} | keys)))
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def quick(monkeypatch):
    """Waits end at once and are noted, in seconds."""
    waits = []
    real = asyncio.sleep

    async def sleep(seconds, *args):
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


def server_of(reference, tokenizer, **keys):
    return CompletionsServer(reference, tokenizer, **keys)


def dummy_server(tokenizer, **keys):
    return CompletionsServer(DummyEngine(tokenizer, seed=3), tokenizer, **keys)


def found(engine, asked):
    """Token ids by request; raises on one that comes twice."""
    answers = {}
    for index, completions in engine.sample(asked):
        assert index not in answers
        answers[index] = [c.token_ids for c in completions]
    assert sorted(answers) == list(range(len(asked)))
    assert [len(answers[i]) for i in range(len(asked))] == [r.n for r in asked]
    return answers


ASKED = [
    Request(f"t/{i:02}", (1, 300 + i, 20), 1 + i % 4, 50 + i, SampleParams(30, stop_token_ids=(2,))) for i in range(12)
]


# -- the distribution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("vllm", {}),
        ("vllm", {"temperature": 1.3, "top_p": 0.7}),
        ("llamacpp", {"top_k": 20}),
        ("one by one", {}),
    ],
    ids=str,
)
def test_next_token_frequencies_are_those_of_the_model(tokenizer, connect, setting, kind):
    import torch

    sharp = sharp_llama(len(tokenizer), 0.25)
    prompt = (1, *tokenizer.encode("json helps", add_special_tokens=False))
    with torch.no_grad():
        logits = sharp(torch.tensor([prompt])).logits[0, -1].numpy()
    reference = TransformersEngine.from_model(sharp, tokenizer)
    keys = {"owner": "llamacpp"} if kind == "llamacpp" else {"slots": None} if kind == "one by one" else {}
    per = 5 if kind == "one by one" else 40
    with server_of(reference, tokenizer, **keys) as server:
        engine = connect(server)
        asked = [Request(f"{i}", prompt, per, 7919 * i, SampleParams(1, **setting)) for i in range(2000 // per)]
        tokens = [c.token_ids[0] for _, cs in engine.sample(asked) for c in cs]
    assert len(tokens) == 2000
    assert p_value(tokens, filtered(logits, **setting)) > 1e-4
    wrong = {**setting, "temperature": 1.5 * setting.get("temperature", 1.0)}
    assert p_value(tokens, filtered(logits, **wrong)) < 1e-4


def test_siblings_and_requests_differ_and_come_back_the_same(reference, tokenizer, connect):
    with server_of(reference, tokenizer) as server:
        engine = connect(server)
        assert isinstance(engine, Engine)
        first = found(engine, ASKED)
        backwards = found(engine, ASKED[::-1])
        assert first == {11 - i: ids for i, ids in backwards.items()}
        assert len({tuple(ids) for cs in first.values() for ids in cs}) == sum(r.n for r in ASKED)
        assert all(b.get("n", 1) == 1 + (b["prompt"][1] - 300) % 4 for b in server.sampled())


def test_logprobs_are_those_of_the_model(reference, tokenizer, connect):
    with server_of(reference, tokenizer) as server:
        engine = connect(server)
        assert engine.info.gives_logprobs and not engine.info.can_score
        assert (engine.info.name, engine.info.version, engine.info.model) == ("openai", "vLLM 1.2.3", "tiny")
        asked = requests(prompts(6, 500), params=SampleParams(12, 0.6, 0.9, stop_token_ids=(2, 5, 9)))
        answers = dict(engine.sample(asked))
    rows = [(asked[i].prompt_ids, c) for i in range(6) for c in answers[i]]
    scores = reference.score([ScoreRow([*p, *c.token_ids], len(p)) for p, c in rows])
    for (_, c), score in zip(rows, scores, strict=True):
        assert np.allclose(c.logprobs, score.logprobs, atol=1e-4)


def test_logprobs_at_another_temperature_are_not_taken(reference, tokenizer, connect):
    with server_of(reference, tokenizer, scaled=True) as server:
        engine = connect(server)
        assert not engine.info.gives_logprobs
        assert all(c.logprobs is None for _, cs in engine.sample(ASKED) for c in cs)
        assert not any(b.get("logprobs") for b in server.sampled())


def test_scoring_is_refused(tokenizer, connect):
    with dummy_server(tokenizer) as server, pytest.raises(EngineError, match="cannot score"):
        connect(server).score([ScoreRow([1, 2])])


def test_greedy_is_asked_for_once(reference, tokenizer, connect):
    asked = [Request("a", (1, 40), 3, 1, SampleParams(6, temperature=0))]
    with server_of(reference, tokenizer) as server:
        answers = found(connect(server), asked)
        assert len(server.sampled()) == 1
    assert answers == {0: [c.token_ids for c in dict(reference.sample(asked))[0]]}


# -- stops and tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["vllm", "llamacpp", "someone"])
def test_stop_tokens_and_stop_strings(reference, tokenizer, connect, owner):
    params = SampleParams(8, 1.0, stop_token_ids=(2, 300), stop_strings=("a", "st"))
    asked = [Request(f"{i}", (1, 40, 50), 8, i, params) for i in range(8)]
    with server_of(reference, tokenizer, owner=owner) as server:
        answers = [c for _, cs in connect(server).sample(asked) for c in cs]
    assert {c.finish for c in answers} == {"stop", "length"}
    for c in answers:
        assert not {2, 300} & set(c.token_ids) and "a" not in c.text and "st" not in c.text
        assert tokenizer.decode(c.token_ids) == c.text
        assert c.logprobs is None or len(c.logprobs) == len(c.token_ids)


def test_a_server_that_takes_text_only(reference, tokenizer, connect, capsys):
    """The prompt is decoded, the completion encoded again; there is nothing to lay log-probabilities beside."""
    with server_of(reference, tokenizer, owner="someone") as server:
        engine = connect(server)
        assert not engine.info.gives_logprobs
        asked = [Request("a", (1, *tokenizer.encode("user\n"), 2), 3, 5, SampleParams(8))]
        answers = dict(engine.sample(asked))[0]
        assert server.bodies[-1]["prompt"] == "<|im_start|>user\n<|im_end|>" and "top_k" not in server.bodies[-1]
    assert all(c.token_ids == tokenizer.encode(c.text, add_special_tokens=False) for c in answers)
    with pytest.raises(EngineError, match="takes no top_k"):
        engine.sample([Request("a", (1,), 1, 1, SampleParams(4, top_k=5))])


def test_an_opening_that_the_server_adds_itself_is_left_to_it(reference, tokenizer, connect):
    with server_of(reference, tokenizer, owner="someone", adds_bos=True) as server:
        found(connect(server), [Request("a", (1, 40, 41), 1, 5, SampleParams(8))])
        assert server.bodies[-1]["prompt"] == tokenizer.decode([40, 41])


def test_a_server_with_a_template_of_its_own_is_refused(reference, tokenizer, connect):
    with (
        server_of(reference, tokenizer, owner="library", template=("<|im_start|>user\n", "<|im_end|>")) as server,
        pytest.raises(EngineError, match=r"counts \d+ tokens in a prompt of \d+"),
    ):
        connect(server)


def test_wrong_token_counts_are_noticed(tokenizer, connect):
    with dummy_server(tokenizer) as server:
        engine = connect(server)
        server.misbehave = lambda number, body: Fault(edit=lambda r: r | {"usage": {"prompt_tokens": 4096}})
        with pytest.raises(EngineError, match="counts 4096 tokens in a prompt of 3") as caught:
            found(engine, ASKED[:1])
        assert server.url in str(caught.value) and "request t/00" in str(caught.value)


def test_tokens_that_the_model_does_not_have_are_noticed(tokenizer, connect):
    def other(reply):
        reply["choices"][0]["token_ids"][0] = 90_000
        return reply

    with dummy_server(tokenizer) as server:
        engine = connect(server)
        server.misbehave = lambda number, body: Fault(edit=other)
        with pytest.raises(EngineError, match="token 90000 of a vocabulary of"):
            found(engine, ASKED[:1])


def test_an_end_token_that_nobody_asked_for_is_an_end():
    """llama.cpp stops at every end token of its file."""
    said = {"content": "x", "tokens": [40, 0], "tokens_evaluated": 3, "stop_type": "eos", "index": 0}
    choice = LLAMA_CPP.read(said).choices[0]
    assert choice.token_ids == [40, 0] and choice.finish == "stop" and choice.logprobs is None
    engine = OpenAIEngine.__new__(OpenAIEngine)
    engine._tokenizer, engine._vocabulary, engine._special = tiny_tokenizer(), 600, {0, 1, 2}
    engine._asker = SimpleNamespace(logprobs=False)
    assert engine._completion(ASKED[0], choice).token_ids == [40]


def test_logprobs_that_llama_cpp_leaves_out_are_not_guessed():
    def entry(token, value):
        return {"id": token, "logprob": value, "top_logprobs": []}

    said = {"content": "x", "tokens": [7, 8, 9], "tokens_evaluated": 3, "stop_type": "limit", "index": 0}
    values = LLAMA_CPP.read(said | {"completion_probabilities": [entry(7, -1), entry(9, -3)]}).choices[0].logprobs
    assert values[0] == -1 and np.isnan(values[1]) and values[2] == -3
    with pytest.raises(Malformed, match="other tokens"):
        LLAMA_CPP.read(said | {"completion_probabilities": [entry(6, -1)]})


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"id": "m", "owned_by": "vllm"}, "vLLM"),
        ({"id": "m", "owned_by": "sglang"}, "SGLang"),
        ({"id": "m", "owned_by": "llamacpp"}, "llama.cpp"),
        ({"id": "m", "owned_by": "library"}, "Ollama"),
        ({"id": "m", "owned_by": "m"}, "TGI"),
        ({"id": "m"}, "an OpenAI-compatible server"),
    ],
)
def test_the_kind_of_server(entry, name):
    assert dialect_of(entry).name == name


def test_servers_are_told_to_leave_the_distribution_alone():
    params = SampleParams(9, 0.8, 1.0, 0, (2,), ("\n\n",))

    def body(dialect):
        return dialect.body("m", (1, 2), 3, 77, params, ["<|im_end|>"], 1)

    vllm, sglang, llama, tgi = body(VLLM), body(SGLANG), body(LLAMA_CPP), body(TGI)
    assert vllm["ignore_eos"] and vllm["stop_token_ids"] == [2] and vllm["stop"] == ["\n\n"] and vllm["top_k"] == 0
    assert sglang["top_k"] == -1 and "ignore_eos" not in sglang and sglang["stop_token_ids"] == [2]
    assert llama["samplers"] == ["temperature", "top_k", "top_p"] and "ignore_eos" not in llama
    assert llama["stop"] == ["\n\n", "<|im_end|>"] and llama["preserved_tokens"] == ["<|im_end|>"]
    assert "top_p" not in tgi and tgi["stop"] == ["\n\n", "<|im_end|>"]
    for said in (vllm, sglang):
        assert said["repetition_penalty"] == 1 and said["min_p"] == 0 and said["skip_special_tokens"] is False
    no_stops = SGLANG.body("m", (1,), 1, 1, SampleParams(9), [], 0)
    assert no_stops["ignore_eos"] is True


# -- many requests -------------------------------------------------------------------------------------------------


def test_requests_go_out_by_tree_path(tokenizer, connect):
    keys = ["t/2", "t/0/1", "t/0", "t/1", "t/0/0"]
    asked = [Request(k, (1, 100 + i), 1, i, SampleParams(20)) for i, k in enumerate(keys)]
    with dummy_server(tokenizer) as server:
        found(connect(server, max_concurrency=1), asked)
        assert [keys[b["prompt"][1] - 100] for b in server.sampled()] == sorted(keys)


@pytest.mark.parametrize("most", [1, 3, 64])
def test_concurrency_is_bounded_and_used(tokenizer, connect, most):
    asked = [Request(f"{i:03}", (1, 40), 1, i, SampleParams(20)) for i in range(80)]
    gate = threading.Event()
    with dummy_server(tokenizer) as server:
        engine = connect(server, max_concurrency=most)
        server.most = 0

        def hold(number, body):
            if server.active >= most:  # all that may come are here
                gate.set()
            return Fault(hold=gate)

        server.misbehave = hold
        found(engine, asked)
        assert server.most == most


def test_requests_per_minute_are_spaced(tokenizer, connect, quick):
    with dummy_server(tokenizer) as server:
        engine = connect(server, requests_per_minute=6)
        quick.clear()
        engine._client._next_slot = 0.0
        found(engine, [Request(f"{i}", (1, 40), 1, i, SampleParams(5)) for i in range(5)])
    assert [round(s / 10) for s in sorted(quick)] == [0, 1, 2, 3, 4]


# -- a server that misbehaves --------------------------------------------------------------------------------------

FAULTS = {
    "429": lambda: Fault(429, {"Retry-After": "7"}, "slow down"),
    "500": lambda: Fault(500, text="boom"),
    "503": lambda: Fault(503),
    "cut": lambda: Fault(cut=True),
    "garbage": lambda: Fault(text="<html>not json"),
    "half": lambda: Fault(text='{"choices": [{"index"'),
    "no choices": lambda: Fault(text='{"choices": [], "usage": {"prompt_tokens": 3}}'),
    "no text": lambda: Fault(edit=lambda r: {"choices": [{"index": 0, "finish_reason": "stop"}]}),
    "aborted": lambda: Fault(edit=lambda r: r | {"choices": [c | {"finish_reason": "abort"} for c in r["choices"]]}),
    "ids": lambda: Fault(edit=lambda r: r | {"choices": [c | {"token_ids": ["x"]} for c in r["choices"]]}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_tried_again(tokenizer, connect, quick, name):
    """Every request fails twice; none is lost, none comes twice, all say what they would have said."""
    with dummy_server(tokenizer) as server:
        engine = connect(server)
        expected = found(engine, ASKED)
        server.bodies.clear()
        seen = {}

        def misbehave(number, body):
            text = json.dumps(body, sort_keys=True)
            seen[text] = seen.get(text, 0) + 1
            return FAULTS[name]() if seen[text] <= 2 else None

        server.misbehave = misbehave
        quick.clear()
        assert found(engine, ASKED) == expected
    assert set(seen.values()) == {3} and len(seen) == len(ASKED)
    waits = [s for s in quick if s > 0]
    assert len(waits) == 2 * len(ASKED) and max(waits) <= 8
    if name == "429":
        assert min(waits) >= 7
    else:
        assert len(set(waits)) > len(ASKED)  # spread


def test_retry_after_may_be_a_date(tokenizer, connect, quick):
    import email.utils
    import time

    with dummy_server(tokenizer) as server:
        engine = connect(server)
        at = email.utils.formatdate(time.time() + 300, usegmt=True)
        server.misbehave = lambda number, body: Fault(503, {"Retry-After": at}) if len(server.bodies) < 8 else None
        server.bodies[:] = [{"seed": 0}] * 6
        quick.clear()
        found(engine, ASKED[:1])
    assert max(quick) > 280


def test_retries_used_up_keep_what_was_yielded(tokenizer, connect, quick):
    with dummy_server(tokenizer) as server:
        engine = connect(server, retries=2, max_concurrency=1)
        server.misbehave = lambda n, body: Fault(502, text="bad gateway") if body["prompt"][1] >= 304 else None
        done = []
        with pytest.raises(EngineError, match=r"no usable answer after 3 tries: 502 bad gateway") as caught:
            for index, _ in engine.sample(ASKED):
                done.append(index)
        assert server.url in str(caught.value) and done == [0, 1, 2, 3]
        assert [b["prompt"][1] for b in server.sampled()] == [300, 301, 302, 303, 304, 304, 304]
        server.misbehave = lambda n, body: None
        found(engine, ASKED)


def test_a_refusal_is_one_error_and_no_retry(tokenizer, connect, quick):
    with dummy_server(tokenizer) as server:
        engine = connect(server, max_concurrency=1)
        server.misbehave = lambda n, body: Fault(400, text="max_tokens is too large")
        quick.clear()
        with pytest.raises(EngineError, match="400 max_tokens is too large") as caught:
            found(engine, ASKED)
        assert server.url in str(caught.value) and len(server.sampled()) == 1 and not quick


def test_a_server_that_is_not_there(model, quick):
    with pytest.raises(EngineError, match="no usable answer after 2 tries") as caught:
        OpenAIEngine(model, ServerConfig(url="http://127.0.0.1:9", retries=1))
    assert "http://127.0.0.1:9" in str(caught.value)


def test_timeout(tokenizer, connect):
    with dummy_server(tokenizer) as server:
        engine = connect(server, timeout=0.3, retries=0)
        gate = threading.Event()
        server.misbehave = lambda n, body: Fault(hold=gate)
        with pytest.raises(EngineError, match=r"after 1 try: nothing within 0\.3 s"):
            found(engine, ASKED[:1])
        gate.set()


def test_fewer_choices_than_asked_for(tokenizer, connect, capsys):
    """The missing ones are asked for again, one by one, and differ from those that came."""
    with dummy_server(tokenizer) as server:
        engine = connect(server, max_concurrency=1)
        server.misbehave = lambda n, body: Fault(edit=lambda r: r | {"choices": r["choices"][-2:]})
        asked = [Request(f"{i}", (1, 40), 5, i, SampleParams(40)) for i in range(4)]
        answers = found(engine, asked)
        sizes = [b.get("n", 1) for b in server.sampled()]
    # The first says that n does not work; the portions of the other requests were made before.
    assert sizes == [5] + [1] * 18
    assert len({tuple(ids) for cs in answers.values() for ids in cs}) > 15
    assert "2 of 5 siblings came back" in capsys.readouterr().err


def test_siblings_that_are_copies_are_asked_for_one_by_one(tokenizer, connect, capsys):
    with dummy_server(tokenizer) as server:
        server.misbehave = lambda n, body: Fault(
            edit=lambda r: r | {"choices": [r["choices"][-1]] * len(r["choices"])}
        )
        engine = connect(server)
        server.misbehave = lambda n, body: None
        found(engine, [Request("a", (1, 40), 3, 1, SampleParams(20))])
        assert len(server.sampled()) == 3 and "siblings" in capsys.readouterr().err


def test_siblings_come_in_portions_that_the_server_can_hold(tokenizer, connect):
    with dummy_server(tokenizer, owner="llamacpp", slots=4) as server:
        found(connect(server), [Request("a", (1, 40), 10, 1, SampleParams(20))])
        assert sorted(b["n_cmpl"] for b in server.sampled()) == [2, 4, 4]
        assert len({b["seed"] for b in server.sampled()}) == 3


def test_a_seed_that_the_server_ignores_is_named(tokenizer, connect, capsys):
    class Forgetful(DummyEngine):
        count = 0

        def sample(self, asked):
            self.count += 1
            return super().sample([Request(r.key, r.prompt_ids, r.n, r.seed + self.count, r.params) for r in asked])

    with CompletionsServer(Forgetful(tokenizer), tokenizer) as server:
        connect(server)
    assert "does not draw the same tokens from the same seed" in capsys.readouterr().err


# -- the cache -----------------------------------------------------------------------------------------------------


def test_answers_are_paid_for_once(tokenizer, connect):
    with dummy_server(tokenizer) as server:
        first = found(connect(server, cache=True), ASKED)
        assert len(server.sampled()) == len(ASKED)
        assert found(connect(server, cache=True), ASKED) == first
        assert len(server.sampled()) == len(ASKED)
        found(connect(server, cache=False), ASKED)
        assert len(server.sampled()) == 2 * len(ASKED)
        other = [Request(r.key, r.prompt_ids, r.n, r.seed + 1000, r.params) for r in ASKED]
        assert found(connect(server, cache=True), other) != first
        assert len(server.sampled()) == 3 * len(ASKED)
    with dummy_server(tokenizer, model="another") as server:
        found(connect(server, cache=True), ASKED)
        assert len(server.sampled()) == len(ASKED)


def test_answers_that_are_wrong_are_not_kept(tokenizer, connect, quick):
    with dummy_server(tokenizer) as server:
        engine = connect(server, cache=True)
        server.misbehave = lambda n, body: Fault(edit=lambda r: r | {"usage": {"prompt_tokens": 5}})
        with pytest.raises(EngineError, match="counts 5"):
            found(engine, ASKED[:1])
        server.misbehave = lambda n, body: None
        found(engine, ASKED[:1])


def test_a_damaged_cache_says_what_to_do(tokenizer, connect, cache):
    cache.mkdir()
    (cache / "requests.sqlite").write_bytes(b"not a database at all" * 100)
    with dummy_server(tokenizer) as server, pytest.raises(EngineError, match="request cache cannot be used") as caught:
        connect(server, cache=True)
    assert "delete the file" in caught.value.hint


# -- the key -------------------------------------------------------------------------------------------------------

SECRET = "sk-verysecret-0123456789"


def test_the_key_is_sent_and_never_shown(tokenizer, connect, cache, monkeypatch, capsys, quick):
    monkeypatch.setenv("MY_KEY", SECRET)
    with dummy_server(tokenizer, key=SECRET) as server:
        engine = connect(server, api_key_env="MY_KEY", cache=True)
        found(engine, ASKED)
        assert set(server.keys) == {f"Bearer {SECRET}"}
        shown = [repr(engine.info), repr(engine), str(engine._identity)]
        server.misbehave = lambda n, body: Fault(403, text=f"key {SECRET} is not allowed")
        with pytest.raises(EngineError, match=r"403 key \*\*\* is not allowed") as caught:
            found(engine, [Request("new", (1, 9), 1, 1, SampleParams(5))])
        shown += [str(caught.value), repr(caught.value.__context__)]
        server.misbehave = lambda n, body: Fault(500, text=f"key {SECRET} broke it")
        with pytest.raises(EngineError, match=r"500 key \*\*\* broke it") as caught:
            found(engine, [Request("new", (1, 9), 1, 1, SampleParams(5))])
        shown += [str(caught.value), repr(caught.value.__context__)]
        monkeypatch.setenv("MY_KEY", "sk-wrong")
        with pytest.raises(EngineError, match="401 Incorrect API key") as caught:
            connect(server, api_key_env="MY_KEY")
        assert "sk-wrong" not in str(caught.value) and "api_key_env" in caught.value.hint
    shown += [*capsys.readouterr(), *(p.read_bytes().decode(errors="replace") for p in cache.iterdir())]
    assert not any(SECRET in text for text in shown)


def test_a_key_that_is_not_set(model, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(EngineError, match="environment variable MY_KEY is not set"):
        OpenAIEngine(model, ServerConfig(url="http://127.0.0.1:9", api_key_env="MY_KEY"))


def test_a_key_in_the_recipe_is_refused_and_not_repeated():
    from regrow.errors import RecipeError
    from regrow.recipe import parse_recipe

    for text, sets in (
        (f"grow:\n  server:\n    api_key_env: {SECRET}\n", []),
        ("", [f"grow.server.api_key_env={SECRET}"]),
    ):
        with pytest.raises(RecipeError, match="name of an environment variable") as caught:
            parse_recipe(text, overrides=sets)
        assert SECRET not in str(caught.value) and "api_key_env" in str(caught.value)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://user:pw@host/v1", "http://host/v1?key=x"])
def test_addresses_that_are_refused(url):
    with pytest.raises(ValueError, match="address"):
        ServerConfig(url=url)


def test_v1_may_stand_at_the_end():
    assert ServerConfig(url="http://host:1/v1/").url == ServerConfig(url=" http://host:1").url == "http://host:1"


def test_the_model_is_the_one_named(tokenizer, connect):
    with dummy_server(tokenizer, model="served-name") as server:
        engine = connect(server, model="served-name")
        assert engine.info.model == "served-name" and server.bodies[-1]["model"] == "served-name"
        with pytest.raises(EngineError, match="does not serve 'another'") as caught:
            connect(server, model="another")
        assert "It serves: served-name" in caught.value.hint


def test_longer_than_the_context_is_refused(tokenizer, connect):
    with dummy_server(tokenizer) as server, pytest.raises(EngineError, match="exceed the context of 1024"):
        connect(server).sample([Request("a", (1,), 1, 1, SampleParams(2000))])


def test_an_abandoned_call_and_two_closings(tokenizer, connect):
    with dummy_server(tokenizer) as server:
        engine = connect(server, max_concurrency=2)
        begun = engine.sample([Request(f"{i:02}", (1, 40), 1, i, SampleParams(20)) for i in range(60)])
        next(begun)
        begun.close()
        assert found(engine, ASKED)
        assert len(server.sampled()) < 60 + len(ASKED)
        engine.close()
        engine.close()


def test_nothing_to_do(tokenizer, connect):
    with dummy_server(tokenizer) as server:
        engine = connect(server)
        assert dict(engine.sample([])) == {}
        answers = dict(
            engine.sample([Request("a", (1,), 0, 1, SampleParams(5)), Request("b", (1,), 2, 1, SampleParams(0))])
        )
        assert answers[0] == [] and [c.finish for c in answers[1]] == ["length"] * 2
        assert not server.sampled()

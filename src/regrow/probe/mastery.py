"""SliCK: how well a model knows each fact, from few-shot prompts answered greedily and by sampling.

Gekhman et al., "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?" (arXiv 2405.05904).
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from regrow.engines.base import Engine, Request, SampleParams
from regrow.errors import DataError
from regrow.evaluate.rouge import exact_match, normalise
from regrow.evaluate.stats import mean_interval
from regrow.ledger import Ledger, pass_key
from regrow.probe.config import MasteryConfig
from regrow.probe.draws import seed_for
from regrow.probe.texts import Question
from regrow.progress import Task, note, task
from regrow.rows.writers import atomic_write_text, write_json_lines

Category = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
_COST_SAMPLE = 32
"""Questions whose prompts are tokenised to estimate the rest."""


def category(p_greedy: float, p_sampled: float | None) -> Category:
    """SliCK's category of a fact (2405.05904).

    Args:
        p_greedy: Share of the prompts whose greedy answer is right.
        p_sampled: Share of the sampled answers that are right; only asked for when ``p_greedy`` is 0.

    Raises:
        ValueError: ``p_greedy`` is 0 and nothing was sampled.
    """
    if p_greedy == 1:
        return "HighlyKnown"
    if p_greedy > 0:
        return "MaybeKnown"
    if p_sampled is None:
        raise ValueError("no greedy answer is right, so sampled answers decide, and there are none")
    return "WeaklyKnown" if p_sampled > 0 else "Unknown"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a probe will ask of the engine; upper bounds.

    Attributes:
        greedy, sampled: Answers.
        prompt_tokens: Of all few-shot prompts, estimated from the first questions.
        new_tokens: Answers times their cap.
    """

    questions: int
    greedy: int
    sampled: int
    prompt_tokens: int
    new_tokens: int

    def text(self) -> str:
        """For the terminal."""
        return (
            f"{self.questions:,} questions: {self.greedy:,} greedy answers, then at most {self.sampled:,} sampled "
            f"ones; about {self.prompt_tokens:,} prompt tokens and at most {self.new_tokens:,} new ones"
        )


@dataclass(slots=True)
class MasterySummary:
    """What `probe_mastery` found.

    Attributes:
        counts, shares: By category.
        intervals: Category -> interval of its share over resampled questions.
        relations: Relation -> counts; empty when the file has no relations.
        accuracy: Mean share of right greedy answers.
        answers: Answers generated in all, by this and earlier runs.
        prompts, shots, samples: As set.
    """

    questions: int
    counts: dict[str, int]
    shares: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    relations: dict[str, dict[str, int]]
    accuracy: float
    answers: int
    prompts: int
    shots: int
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class Prompter:
    """Few-shot prompts: which questions are shown, and their tokens.

    Args:
        questions: All questions of the file.
        cfg: Settings.
        tokenizer: Of the model.
        seed: Of the draws. A prompt's shots depend on the seed, the question's id, the prompt's number and the ids in
            its pool.
        shown: Questions that may be shown with their answers; ``questions`` themselves by default. Held-out questions
            are asked with those of the training part, so that none of their answers is seen.

    Raises:
        DataError: A relation has too few questions for the shots; settings and file do not fit.
    """

    def __init__(
        self, questions: Sequence[Question], cfg: MasteryConfig, tokenizer: Any, seed: int,
        shown: Sequence[Question] | None = None,
    ) -> None:  # fmt: skip
        self._cfg, self._tokenizer, self._seed = cfg, tokenizer, seed
        self._pools: dict[str, list[Question]] = defaultdict(list)
        shown = questions if shown is None else shown
        for q in shown:
            self._pools[self._pool(q)].append(q)
        # A twin of the question would show its answer.
        self._twins = Counter((self._pool(q), normalise(q.text)) for q in shown)
        for q in questions:
            have = len(self._pools[self._pool(q)]) - self._same(q)
            if have < cfg.shots:
                group = f"relation {q.relation!r}" if self._pool(q) else "the file"
                raise DataError(
                    f"{group} has {have} other question(s); a prompt shows {cfg.shots}", where=q.id,
                    hint="Fewer shots (--set probe.mastery.shots=N), or draw them from the whole file "
                    "(--set probe.mastery.pool=file).",
                )  # fmt: skip
        form = cfg.form
        if form == "auto":
            form = "plain" if tokenizer.chat_template is None else "chat"
        self._turns: Any = None
        if form == "chat":
            from regrow.models.turns import derive_turns

            self._turns = derive_turns(tokenizer)

    def _pool(self, question: Question) -> str:
        return question.relation if self._cfg.pool == "relation" else ""

    def _same(self, question: Question) -> int:
        """Questions of its pool that ask the same, itself included when it is there."""
        return self._twins[self._pool(question), normalise(question.text)]

    def shots(self, question: Question, prompt: int) -> list[Question]:
        """The answered questions of one prompt, drawn without replacement, never the question itself or its twin."""
        rng = random.Random(seed_for(self._seed, "shots", question.id, prompt))
        pool = self._pools[self._pool(question)]
        picks = [pool[i] for i in rng.sample(range(len(pool)), self._cfg.shots + self._same(question))]
        asked = normalise(question.text)
        return [q for q in picks if normalise(q.text) != asked][: self._cfg.shots]

    def tokens(self, question: Question, shots: Sequence[Question]) -> tuple[int, ...]:
        """The prompt's ids: turns of the chat template, or ``Q: ... A: ...`` paragraphs."""
        if self._turns is None:
            text = "".join(f"Q: {s.text}\nA: {s.answers[0]}\n\n" for s in shots) + f"Q: {question.text}\nA:"
            return tuple(self._tokenizer(text)["input_ids"])
        head = [m for m in question.messages[:-1] if m["role"] == "system"]
        said = [m for m in question.messages if m["role"] != "system"]
        turns = [
            m
            for s in shots
            for m in ({"role": "user", "content": s.text}, {"role": "assistant", "content": s.answers[0]})
        ]
        ids, _ = self._turns.encode_dialogue(self._tokenizer, [*head, *turns, *said])
        opened = self._turns.encode(self._tokenizer, self._turns.assistant_open, first=False)
        return (*ids, *opened)

    def params(self, temperature: float, top_k: int) -> SampleParams:
        """Sampling parameters of an answer; it ends with its line, or with the assistant's turn."""
        cap = self._cfg.max_new_tokens
        if self._turns is None:
            eos = self._tokenizer.eos_token_id
            return SampleParams(
                cap, temperature, top_k=top_k, stop_token_ids=() if eos is None else (int(eos),), stop_strings=("\n",)
            )
        return SampleParams(
            cap, temperature, top_k=top_k, stop_token_ids=self._turns.stop_ids("assistant"),
            stop_strings=self._turns.stop_strings("assistant"),
        )  # fmt: skip


def estimate(questions: Sequence[Question], cfg: MasteryConfig, prompter: Prompter) -> Cost:
    """Answers and tokens that `probe_mastery` may ask for."""
    first = questions[:_COST_SAMPLE]
    tokens = sum(len(prompter.tokens(q, prompter.shots(q, 0))) for q in first) / len(first)
    greedy = len(questions) * cfg.prompts
    sampled = greedy * cfg.samples
    return Cost(
        len(questions), greedy, sampled, round(tokens * greedy * 2), (greedy + sampled) * cfg.max_new_tokens
    )  # fmt: skip


def probe_mastery(
    questions: Sequence[Question], cfg: MasteryConfig, out: Path, *, engine: Engine, tokenizer: Any,
    confidence: float = 0.95, seed: int = 0, shown: Sequence[Question] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> MasterySummary:  # fmt: skip
    """Label questions by how well the model knows their answers.

    Ten few-shot prompts a question; one greedy and sixteen sampled answers a prompt (with the defaults). An answer is
    right when its first line is one of the accepted answers after normalisation (case, punctuation, articles).

    Args:
        questions: What to ask.
        cfg: Settings.
        out: Folder for ``labels.jsonl`` (the records as they came, with three more columns), ``prompts.jsonl`` (every
            draw of shots and every answer) and ``mastery.json``; what is done is kept there and not done again.
        engine: Samples.
        tokenizer: Of the model.
        confidence: Level of the intervals.
        seed: Of the shots and of the sampled answers.
        shown: See `Prompter`.
        clock: Seconds, for the estimate of the time.

    Raises:
        DataError: A relation is too small for the shots; a record has a column of the name to be written.
    """
    columns = (cfg.column, f"{cfg.column}_greedy", f"{cfg.column}_sampled")
    for q in questions:
        if taken := [c for c in columns if c in q.record]:
            raise DataError(
                f"the record already has a column {taken[0]!r}", where=q.id,
                hint="Choose another name: --set probe.mastery.column=mastery_after",
            )  # fmt: skip
    prompter = Prompter(questions, cfg, tokenizer, seed, shown)
    note(estimate(questions, cfg, prompter).text())
    seen = questions if shown is None else [*questions, *shown]
    asked = hashlib.sha256(json.dumps([[q.id, q.messages, q.answers, q.relation] for q in seen]).encode())
    settings = cfg.model_dump(exclude={"sample", "column", "engine", "batch_items"})
    settings |= {"seed": seed, "questions": asked.hexdigest(), "engine": engine.info.name}
    passes = {kind: pass_key(kind, engine.info.revision, settings) for kind in ("greedy", "sampled")}
    with Ledger(out / "ledger.jsonl") as ledger:
        asker = _Asker(questions, cfg, prompter, engine, ledger, seed, clock)
        greedy = asker.ask(questions, passes["greedy"], "greedy answers", 1)
        unsettled = [q for q in questions if cfg.sample == "all" or not any(greedy[q.id]["right"])]
        asker.announce(len(unsettled))
        sampled = asker.ask(unsettled, passes["sampled"], "sampled answers", cfg.samples)
    summary, labelled, details = _results(questions, cfg, prompter, greedy, sampled, columns, confidence, seed)
    write_json_lines(labelled, out / "labels.jsonl")
    write_json_lines(details, out / "prompts.jsonl")
    atomic_write_text(out / "mastery.json", json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n")
    (out / "ledger.jsonl").unlink()  # all of it stands in prompts.jsonl now
    return summary


@dataclass
class _Asker:
    questions: Sequence[Question]
    cfg: MasteryConfig
    prompter: Prompter
    engine: Engine
    ledger: Ledger
    seed: int
    clock: Callable[[], float]
    seconds: float = 0.0
    asked: int = 0

    def ask(self, questions: Sequence[Question], name: str, label: str, n: int) -> dict[str, dict[str, Any]]:
        """Answers of every question: ``answers`` (a list a prompt) and ``right`` (0 or 1 each, flat)."""
        step = self.cfg.batch_items
        with task(label, len(questions) * self.cfg.prompts * n, "answers") as bar:
            # Batches do not depend on what is done already: the engine rounds alike after a kill.
            for first in range(0, len(questions), step):
                batch = questions[first : first + step]
                size = len(batch) * self.cfg.prompts * n
                if all(self.ledger.get(name, q.id) is not None for q in batch):
                    bar.skip(size)
                    continue
                started = self.clock()
                self.ledger.add(name, self._batch(batch, n, bar))
                self.seconds += self.clock() - started
                self.asked += size
                if n == 1 and self.asked == size and len(questions) > step:
                    self._forecast((bar.total or 0) - bar.done)
        return {q.id: self._stored(name, q) for q in questions}

    def _stored(self, name: str, question: Question) -> dict[str, Any]:
        value = self.ledger.get(name, question.id)
        assert value is not None
        return value

    def _batch(self, questions: Sequence[Question], n: int, bar: Task) -> list[tuple[str, dict[str, Any]]]:
        cfg = self.cfg
        params = self.prompter.params(0.0, 0) if n == 1 else self.prompter.params(cfg.temperature, cfg.top_k)
        kind = "greedy" if n == 1 else "sampled"
        places = [(q, p) for q in questions for p in range(cfg.prompts)]
        requests = [
            Request(f"{q.id}/{p}", self.prompter.tokens(q, self.prompter.shots(q, p)), n,
                    seed_for(self.seed, kind, q.id, p), params)
            for q, p in places
        ]  # fmt: skip
        said: dict[tuple[str, int], list[str]] = {}
        for index, completions in self.engine.sample(requests):
            q, p = places[index]
            said[q.id, p] = [c.text.strip() for c in completions]
            bar.advance(n)
        out: list[tuple[str, dict[str, Any]]] = []
        for q in questions:
            answers = [said[q.id, p] for p in range(cfg.prompts)]
            right = [int(exact_match(a, q.answers)) for of_prompt in answers for a in of_prompt]
            out.append((q.id, {"answers": answers, "right": right}))
        return out

    def _forecast(self, left: float) -> None:
        per_answer = self.seconds / self.asked
        most = (len(self.questions) * self.cfg.prompts * self.cfg.samples) * per_answer
        note(
            f"measured just now: {1 / per_answer if per_answer else 0:,.1f} answers a second; about "
            f"{_clock(left * per_answer)} for the greedy answers left, at most {_clock(most)} for sampled ones"
        )

    def announce(self, unsettled: int) -> None:
        """Say how many questions need sampled answers."""
        per = self.seconds / self.asked if self.asked else 0.0
        answers = unsettled * self.cfg.prompts * self.cfg.samples
        note(
            f"{unsettled:,} of {len(self.questions):,} questions need sampled answers: {answers:,} of them"
            + (f", at most about {_clock(answers * per)}" if per else "")
        )


def _clock(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _results(
    questions: Sequence[Question], cfg: MasteryConfig, prompter: Prompter, greedy: dict[str, dict[str, Any]],
    sampled: dict[str, dict[str, Any]], columns: tuple[str, str, str], confidence: float, seed: int,
) -> tuple[MasterySummary, list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    labelled: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    found: list[Category] = []
    p_greedy: list[float] = []
    for q in questions:
        g, s = greedy[q.id], sampled.get(q.id)
        pg = sum(g["right"]) / len(g["right"])
        ps = None if s is None else sum(s["right"]) / len(s["right"])
        found.append(category(pg, ps))
        p_greedy.append(pg)
        labelled.append({**q.record, columns[0]: found[-1], columns[1]: pg, columns[2]: ps})
        shots = [[s.id for s in prompter.shots(q, p)] for p in range(cfg.prompts)]
        details.append({
            "id": q.id, "category": found[-1], "shots": shots, "greedy": [a[0] for a in g["answers"]],
            "sampled": None if s is None else s["answers"],
        })  # fmt: skip
    relations: dict[str, dict[str, int]] = {}
    for q, name in zip(questions, found, strict=True):
        if q.relation:
            relations.setdefault(q.relation, dict.fromkeys(CATEGORIES, 0))[name] += 1
    intervals: dict[str, tuple[float, float]] = {}
    for c in CATEGORIES:
        i = mean_interval(np.array([x == c for x in found]), confidence=confidence, resamples=2000,
                          seed=seed_for(seed, "shares"))  # fmt: skip
        intervals[c] = (i.low, i.high)
    counts: dict[str, int] = {c: found.count(c) for c in CATEGORIES}
    summary = MasterySummary(
        questions=len(questions), counts=counts, shares={c: n / len(questions) for c, n in counts.items()},
        intervals=intervals, relations=dict(sorted(relations.items())), accuracy=float(np.mean(p_greedy)),
        answers=sum(len(v["right"]) for v in (*greedy.values(), *sampled.values())), prompts=cfg.prompts,
        shots=cfg.shots, samples=cfg.samples,
    )  # fmt: skip
    return summary, labelled, details

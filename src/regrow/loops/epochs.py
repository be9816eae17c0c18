"""A training whose best epoch is chosen on a dev part: a model a pass, each asked the same questions, one kept."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.ledger import Ledger
from regrow.mix.config import MixConfig
from regrow.probe.closed_book import ask_once, missing, right
from regrow.probe.config import MasteryConfig
from regrow.probe.mastery import Prompter
from regrow.probe.texts import Question
from regrow.rows.row import Row
from regrow.rows.writers import atomic_write_text
from regrow.train.config import TrainConfig

if TYPE_CHECKING:
    from regrow.engines.base import Engine

ARM = "arm.json"
MODEL, ADAPTER = "model", "adapter"


@dataclass(frozen=True)
class Exam:
    """What a model is asked after an epoch. There is no test question in it: what chooses cannot see any.

    Attributes:
        dev: Questions that choose.
        shown: Questions of the training part, which may stand in front of dev questions with their answers.
        shots: How many of them do.
        fitted: Whether the trained facts are asked, too (bare, as they were trained).
        cfg: How questions are asked.
        tokenizer: Of the model.
        engine: Starts an engine for a model folder.
        seed: Of the prompts.
    """

    dev: Sequence[Question]
    shown: Sequence[Question]
    shots: int
    fitted: bool
    cfg: MasteryConfig
    tokenizer: Any
    engine: Callable[[Path], Engine]
    seed: int

    def prompter(self, questions: Sequence[Question], shots: int) -> Prompter:
        """Prompts of so many shots; 0 is the bare question, which the probe's own settings refuse because ten equal
        prompts would say nothing."""
        cfg = self.cfg.model_copy(update={"shots": shots})
        return Prompter(questions, cfg, self.tokenizer, self.seed, self.shown)


@dataclass(frozen=True)
class Epoch:
    """A model on its way.

    Attributes:
        epoch: Passes so far, from 1.
        dev: Exact match on the dev part, 0 to 1.
        fitted: Category before any training -> trained facts that it answers right; None when they were not asked.
    """

    epoch: int
    dev: float
    fitted: dict[str, int] | None


@dataclass(frozen=True)
class Arm:
    """A finished training; also in ``arm.json``.

    Attributes:
        facts: Category before any training -> facts trained on.
        epochs: Every model.
        best: The epoch that was kept: the highest dev accuracy, the earliest of equals.
        steps, tokens: Of the training, all epochs.
        dropped: Rows that could not be trained on, by reason.
        replay_tokens: Of a grown corpus.
    """

    facts: dict[str, int]
    epochs: list[Epoch]
    best: int
    steps: int
    tokens: int
    dropped: dict[str, int]
    replay_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def best_epoch(dev: Sequence[float]) -> int:
    """The number, from 1, of the highest accuracy; the earliest of equals, which has drifted least."""
    return max(range(len(dev)), key=lambda i: (dev[i], -i)) + 1


def train_and_choose(
    facts: Sequence[Question],
    before: Mapping[str, str],
    base: Path,
    mix_cfg: MixConfig,
    train_cfg: TrainConfig,
    exam: Exam,
    out: Path,
    *,
    seed: int,
    label: str,
    corpus: Path | None = None,
) -> Arm:
    """Train on facts, ask the model of every epoch, keep the best.

    Writes ``out/model`` (whole, in Hugging Face format; with LoRA ``out/adapter`` too), ``out/arm.json``,
    ``out/ledger.jsonl`` with every answer, ``out/train/log.jsonl``. Killed at any moment and called again, it goes on:
    training from its last checkpoint, asking from its last batch.

    Args:
        facts: What is trained on, each with its first answer.
        before: Id -> category before any training.
        base: The model that training starts from.
        mix_cfg: How rows become tokens; its ``replay_ratio`` counts with a corpus only.
        train_cfg: How to train; ``num_train_epochs`` is a whole number.
        exam: What each model is asked.
        out: A folder.
        seed: Of order and adapters.
        label: For the progress.
        corpus: A grown corpus to mix in.
    """
    if not (out / ARM).is_file():
        mixed = _train(facts, base, mix_cfg, train_cfg, out, seed, label, corpus)
        epochs = _examine(facts, before, int(train_cfg.num_train_epochs), exam, out, label)
        best = best_epoch([e.dev for e in epochs])
        _keep(out, best)
        told = json.loads((out / "train/train.json").read_text(encoding="utf-8"))
        arm = Arm(
            _by_category(facts, before), epochs, best, told["steps"], told["tokens"], mixed["dropped"],
            mixed["replay"]["tokens"],
        )  # fmt: skip
        atomic_write_text(out / ARM, json.dumps(arm.to_dict(), indent=1) + "\n")
    half_written = out.glob(".*.tmp")  # of a merge that was killed
    for gone in (*half_written, out / "train/epochs", out / "train" / MODEL, out / "train" / ADAPTER, out / "asked"):
        shutil.rmtree(gone, ignore_errors=True)
    return read_arm(out)


def read_arm(out: Path) -> Arm:
    """What `train_and_choose` left in a folder."""
    found = json.loads((out / ARM).read_text(encoding="utf-8"))
    return Arm(**{**found, "epochs": [Epoch(**e) for e in found["epochs"]]})


def row_of(question: Question) -> Row:
    """A question with its first answer, as a training row."""
    answer = {"role": "assistant", "content": question.answers[0]}
    return Row(question.id, [*question.messages, answer], domain=question.relation)


def _by_category(facts: Sequence[Question], before: Mapping[str, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for q in facts:
        counts[before[q.id]] = counts.get(before[q.id], 0) + 1
    return counts


def _train(
    facts: Sequence[Question], base: Path, mix_cfg: MixConfig, train_cfg: TrainConfig, out: Path, seed: int,
    label: str, corpus: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from regrow.mix.stage import mix
    from regrow.train.stage import train

    if not (out / "mix/mix.json").is_file():
        mix([row_of(q) for q in facts], corpus, base, mix_cfg, out / "mix", seed=seed)
    cfg = train_cfg.model_copy(update={"save_epochs": True, "merge_adapter": False, "keep_checkpoints": False})
    train(base, out / "mix", cfg, out / "train", seed=seed, label=label)
    gc.collect()  # the trainer refers to itself, and the engine needs the room
    mixed: dict[str, Any] = json.loads((out / "mix/mix.json").read_text(encoding="utf-8"))
    return mixed


def _examine(
    facts: Sequence[Question], before: Mapping[str, str], epochs: int, exam: Exam, out: Path, label: str
) -> list[Epoch]:
    found = []
    with Ledger(out / "ledger.jsonl") as ledger:
        for n in range(1, epochs + 1):
            asked = [("dev", exam.dev, exam.shots)] + ([("fitted", facts, 0)] if exam.fitted else [])
            if any(missing(questions, ledger, f"{kind}/{n}") for kind, questions, _ in asked):
                engine = exam.engine(_whole(out, n))
                try:
                    for kind, questions, shots in asked:
                        ask_once(
                            questions, exam.prompter(questions, shots), engine, ledger, f"{kind}/{n}",
                            label=f"{label} epoch {n}, {kind}", batch_items=exam.cfg.batch_items, seed=exam.seed,
                        )  # fmt: skip
                finally:
                    engine.close()
            dev = right(exam.dev, ledger, f"dev/{n}")
            fitted = None
            if exam.fitted:
                hits = right(facts, ledger, f"fitted/{n}")
                fitted = _by_category([q for q, hit in zip(facts, hits, strict=True) if hit], before)
            found.append(Epoch(n, sum(dev) / len(dev), fitted))
    return found


def _whole(out: Path, epoch: int) -> Path:
    """The model of an epoch as a whole one: an adapter is merged into a folder that the next one takes over."""
    from regrow.models.check import is_adapter
    from regrow.models.save import merge_adapter
    from regrow.train.stage import epoch_folder

    folder = epoch_folder(out / "train", epoch)
    if not is_adapter(folder):
        return folder
    shutil.rmtree(out / "asked", ignore_errors=True)
    return merge_adapter(folder, out / "asked")


def _keep(out: Path, best: int) -> None:
    """Put the chosen model in its place. Nothing is moved before it is needed no more."""
    from regrow.models.check import is_adapter
    from regrow.models.save import merge_adapter
    from regrow.train.stage import epoch_folder

    chosen = epoch_folder(out / "train", best)
    if not (out / MODEL).is_dir():
        if is_adapter(chosen):
            merge_adapter(chosen, out / MODEL)
        else:
            chosen.replace(out / MODEL)
    if chosen.is_dir() and not (out / ADAPTER).is_dir():
        chosen.replace(out / ADAPTER)

"""Questions asked once, greedily: exact match without a category."""

from __future__ import annotations

from collections.abc import Sequence

from regrow.engines.base import Engine, Request
from regrow.evaluate.rouge import exact_match
from regrow.ledger import Ledger
from regrow.probe.draws import seed_for
from regrow.probe.mastery import Prompter
from regrow.probe.texts import Question
from regrow.progress import task


def missing(questions: Sequence[Question], ledger: Ledger, name: str) -> bool:
    """Whether a pass has questions that were not asked yet: whether an engine is needed."""
    return any(ledger.get(name, q.id) is None for q in questions)


def ask_once(
    questions: Sequence[Question], prompter: Prompter, engine: Engine, ledger: Ledger, name: str, *, label: str,
    batch_items: int, seed: int,
) -> None:  # fmt: skip
    """Ask each question in its first prompt and store the answer, with whether it is right, in the ledger.

    Args:
        questions: What to ask.
        prompter: Its prompt number 0 is asked; with no shots that is the bare question.
        engine: Answers.
        ledger: Holds what was asked before; nothing is asked twice. Values: ``answer``, ``right`` (0 or 1).
        name: Of the pass (model, questions, kind of prompt).
        label: For the progress.
        batch_items: Questions asked together.
        seed: Of the requests.
    """
    params = prompter.params(0.0, 0)
    with task(label, len(questions), "answers") as bar:
        # Batches do not depend on what is done already: the engine rounds alike after a kill.
        for first in range(0, len(questions), batch_items):
            batch = questions[first : first + batch_items]
            if not missing(batch, ledger, name):
                bar.skip(len(batch))
                continue
            requests = [
                Request(f"{q.id}/0", prompter.tokens(q, prompter.shots(q, 0)), 1, seed_for(seed, "once", q.id), params)
                for q in batch
            ]
            said = {index: completions[0].text.strip() for index, completions in engine.sample(requests)}
            ledger.add(
                name,
                [(q.id, {"answer": said[i], "right": int(exact_match(said[i], q.answers))})
                 for i, q in enumerate(batch)],
            )  # fmt: skip
            bar.advance(len(batch))


def right(questions: Sequence[Question], ledger: Ledger, name: str) -> list[int]:
    """Whether each question was answered right, 0 or 1, in their order; all were asked."""
    found = []
    for q in questions:
        value = ledger.get(name, q.id)
        assert value is not None
        found.append(int(value["right"]))
    return found

"""What a gradual fine-tuning will ask and train, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regrow.loops.epochs import row_of
from regrow.loops.facts import Facts
from regrow.probe.mastery import Cost, Prompter
from regrow.probe.mastery import estimate as estimate_labels
from regrow.recipe import Recipe


@dataclass(frozen=True)
class GradualCost:
    """Upper bounds.

    Attributes:
        label: One classification of the train part.
        label_test: The one of the test part.
        classifications: Of the train part.
        asked: Answers besides: dev questions and trained facts after each epoch, test questions at the end.
        train_tokens: Arm -> tokens that pass through training.
        disk_bytes: Models that stay, those of the epochs of the longest training, and its checkpoints.
    """

    label: Cost
    label_test: Cost
    classifications: int
    asked: int
    train_tokens: dict[str, int]
    disk_bytes: int

    def text(self) -> str:
        """For the terminal."""
        n, one, test = self.classifications, self.label, self.label_test
        lines = [
            "gradual: at most",
            f"  classify {one.questions:,} facts {n} times  {n * one.greedy:,} greedy answers, "
            f"{n * one.sampled:,} sampled ones",
            f"  classify {test.questions:,} test questions  {test.greedy:,} greedy answers, {test.sampled:,} sampled",
            f"  ask after epochs and at the end  {self.asked:,} answers",
            *(f"  train {arm}  {tokens:,} tokens" for arm, tokens in self.train_tokens.items()),
            f"  disk  {self.disk_bytes / 2**30:.1f} GiB",
        ]
        return "\n".join(lines)


def estimate(recipe: Recipe, model_dir: Path, facts: Facts) -> GradualCost:
    """Count answers and tokens; how many facts each stage trains on is not known yet, so all are counted.

    Raises:
        DataError: A relation has too few questions for the shots, of the train part or of a held-out one.
    """
    from regrow.mix.stage import count_tokens
    from regrow.models.load import load_tokenizer

    cfg, mastery, tokenizer = recipe.gradual, recipe.probe.mastery, load_tokenizer(model_dir)
    label = estimate_labels(facts.train, mastery, Prompter(facts.train, mastery, tokenizer, recipe.seed))
    label_test = estimate_labels(
        facts.test, mastery, Prompter(facts.test, mastery, tokenizer, recipe.seed, facts.train)
    )
    Prompter(facts.dev, mastery.model_copy(update={"shots": cfg.shots}), tokenizer, recipe.seed, facts.train)
    a_pass = count_tokens([row_of(q) for q in facts.train], model_dir, recipe.mix)
    passes = {"stage1": cfg.epochs, "stage2": cfg.stage2.epochs} | ({"one-stage": cfg.epochs} if cfg.one_stage else {})
    replay = 1 / (1 - cfg.stage2.replay_ratio) if cfg.stage2.replay == "corpus" else 1.0
    models = 3 + cfg.one_stage
    exam = len(facts.dev) + len(facts.train) * cfg.law
    weights = sum(p.stat().st_size for p in model_dir.glob("*.safetensors"))
    full = recipe.train.method == "full"
    a_model, checkpoints = (weights, 6 * weights) if full else (0.1 * weights, 0.2 * weights)
    return GradualCost(
        label=label,
        label_test=label_test,
        classifications=models + cfg.control,
        asked=exam * sum(passes.values()) + len(facts.test) * models,
        train_tokens={arm: round(a_pass * n * (replay if arm == "stage2" else 1)) for arm, n in passes.items()},
        disk_bytes=round(weights * models + a_model * max(passes.values()) + checkpoints),
    )

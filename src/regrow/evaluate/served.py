"""A model behind a server as an arm of an evaluation: it writes answers, and scores them where the server can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from regrow.engines.base import Request, SampleParams
from regrow.engines.config import ServerConfig
from regrow.errors import EngineError
from regrow.evaluate.items import Item
from regrow.evaluate.render import TokenRow
from regrow.evaluate.score import RowScore

if TYPE_CHECKING:
    from regrow.engines.openai import OpenAIEngine
    from regrow.engines.prompt_scores import PromptScorer
    from regrow.models.load import ResolvedModel

TOGETHER = 64
"""Items sent before their scores are written down."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is named by an address.

    Attributes:
        url: As it was given, ``http://HOST:PORT`` or ``http://HOST:PORT#NAME``.
        tokenizer: Whose tokenizer and chat template it has; the server must count the same tokens.
        server: Address and limits.
    """

    url: str
    tokenizer: ResolvedModel
    server: ServerConfig

    def __str__(self) -> str:
        return self.url


def is_url(name: str) -> bool:
    """Whether a model is named by an address."""
    return name.startswith(("http://", "https://"))


def served_model(url: str, tokenizer: ResolvedModel, server: ServerConfig) -> ServedModel:
    """Read ``URL`` or ``URL#NAME``; limits and the key come from the recipe's ``grow.server``.

    Raises:
        EngineError: The address is not one.
    """
    from pydantic import ValidationError

    address, _, name = url.partition("#")
    try:
        # The evaluation keeps its own scores; a second memory of answers would outlive the model behind the address.
        keys = {**server.model_dump(), "url": address, "model": name or None, "cache": False}
        return ServedModel(url, tokenizer, ServerConfig(**keys))
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise EngineError(
            said, where=address.split("@")[-1], hint="http://HOST:PORT, or http://HOST:PORT#NAME"
        ) from None


@dataclass
class Served:
    """A server in use as an arm; `close` it.

    Attributes:
        arm: Its name in the comparison.
        revision: A hash of its address and of what it says it serves; it does not know the weights.
        tokenizer: As transformers gives it.
        engine: What asks it.
    """

    arm: str
    revision: str
    tokenizer: Any
    engine: OpenAIEngine

    @property
    def place(self) -> dict[str, str]:
        """For the keys of the cache."""
        return {"dtype": "as served", "device": "server"}

    @cached_property
    def _scorer(self) -> PromptScorer | EngineError:
        try:
            return self.engine.prompt_scorer()
        except EngineError as error:
            return error

    @property
    def scores(self) -> bool:
        """Whether it can score given answers."""
        return not isinstance(self._scorer, EngineError)

    def check(self, items: Sequence[Item]) -> None:
        """Refuse what this server cannot do, before anything is asked.

        Raises:
            EngineError: A suite needs log-probabilities of given answers and the server has none.
        """
        wanted = sorted({i.suite for i in items if needs_scores(i)})
        if wanted and isinstance(self._scorer, EngineError):
            error = self._scorer
            raise EngineError(f"{', '.join(wanted)}: {error.message}", where=error.where, hint=error.hint) from error

    def score_groups(
        self, groups: Sequence[Sequence[TokenRow]], *, skip: set[int]
    ) -> Iterator[tuple[list[int], list[list[RowScore]]]]:
        """Yield ``(indices into groups, scores of each group's rows)``; those in ``skip`` are not asked."""
        if isinstance(self._scorer, EngineError):
            raise self._scorer
        left = [i for i in range(len(groups)) if i not in skip]
        for start in range(0, len(left), TOGETHER):
            batch = left[start : start + TOGETHER]
            found = self._scorer.score([(row.ids, row.targets) for i in batch for row in groups[i]])
            rows = iter(RowScore(f.logprobs, f.margins, f.greedy_ids) for f in found)
            yield batch, [[next(rows) for _ in groups[i]] for i in batch]

    def write(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[int]) -> list[str]:
        """Greedy answers to prompts."""
        params = SampleParams(max_new_tokens, temperature=0.0, stop_token_ids=tuple(stop))
        asked = [Request(f"eval/{k:06d}", tuple(p), 1, 0, params) for k, p in enumerate(prompts)]
        found = dict(self.engine.sample(asked))
        decode = self.tokenizer.decode
        return [decode(found[k][0].token_ids, skip_special_tokens=True).strip() for k in range(len(asked))]

    def close(self) -> None:
        """Drop the connection."""
        self.engine.close()


def needs_scores(item: Item) -> bool:
    """Whether an item is judged by likelihoods rather than by what is written."""
    return item.kind != "written" and "generate" not in item.meta


def connect(arm: str, model: ServedModel) -> Served:
    """Connect to a server.

    Raises:
        EngineError: It cannot be reached, refuses, or has another tokenizer.
        MissingExtra: The client's packages are not installed.
    """
    from regrow.engines.openai import OpenAIEngine
    from regrow.models.load import load_tokenizer

    try:
        engine = OpenAIEngine(model.tokenizer, model.server)
    except EngineError as error:
        if error.where == "grow.server.model":
            hint = f"{error.hint}. Name one of them: {model.server.url}#NAME"
            raise EngineError(error.message, where=model.url, hint=hint) from error
        raise
    tokenizer = load_tokenizer(model.tokenizer.path, trust_remote_code=model.tokenizer.trust_remote_code)
    return Served(arm, f"served-{engine.identity}", tokenizer, engine)

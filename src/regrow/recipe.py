"""The recipe as a typed object: YAML with the same keys as the command line, unknown keys are errors."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from regrow.arms import GENERAL, INTERPOLATE, PLAIN, REPLAY, Source, at_ratio, is_general, is_grown, is_regrown
from regrow.curate.config import CurateConfig
from regrow.errors import RecipeError
from regrow.evaluate.config import EvalConfig
from regrow.grow.config import GrowConfig
from regrow.loops.config import AutoConfig, GradualConfig, RegrowthConfig, SweepConfig
from regrow.mix.config import MixConfig
from regrow.models.config import ModelConfig
from regrow.probe.config import ProbeConfig
from regrow.rows.quality import QualityConfig
from regrow.section import Section
from regrow.train.config import TrainConfig

MAX_NODES = 100_000
"""A recipe that expands to more YAML nodes than this is refused (nested aliases can grow without bound)."""


class DataConfig(Section):
    """The user's data."""

    path: str = ""
    """A file, a folder or a hub name; `demo` makes questions and answers from Python's own documentation."""
    format: str = "auto"
    """auto, or one of: messages, llava, sharegpt, alpaca, prompt_completion, query_response, question_answer, text
    (see the data formats page)."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames columns: the format's name -> your column (`instruction: my_question`)."""
    on_bad: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be used: stop and name it, or drop and count it."""
    domain: str = "domain"
    """A label for your data in logs and charts, for rows that carry none."""
    test_size: float | int = 0.1
    """Rows held out to measure the gain: a share (below 1; at least 10 rows, at most a quarter of few) or a number.
    They are never trained on."""
    max_rows: int | None = Field(default=None, ge=2)
    """Use only the first rows, for a trial."""
    general: str = ""
    """General data of your own (a file, a folder or a hub name), to compare with: a model more is trained, with as
    much replay drawn from it as the others have grown."""
    general_loss: Literal["auto", "hard"] = "auto"
    """The loss on it. auto: that of grown replay (``train.replay_loss``), for which the base reads it once; so what
    differs is the text. hard: the ordinary loss, which is what mixing in general data means elsewhere."""
    quality: QualityConfig = QualityConfig()
    """Train only on the rows that read most like a reference text."""


class Recipe(Section):
    """Everything a run depends on."""

    seed: int = Field(default=0, ge=0)
    """All randomness of the run comes from it."""
    compare: bool = True
    """Also train on your data alone, so that the report can show what replay saved. Costs one more training."""
    arms: list[Literal["sft", "regrow", "general", "interpolate"]] | None = None
    """Which arms to show beside the base; leave out for `regrow` (`sft` too with compare, `general` too with
    data.general). `general` replays your own general data. `interpolate` is half-way between the base and `sft`: the
    alternative that costs no training, only an evaluation."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    probe: ProbeConfig = ProbeConfig()
    auto: AutoConfig = AutoConfig()
    grow: GrowConfig = GrowConfig()
    curate: CurateConfig = CurateConfig()
    mix: MixConfig = MixConfig()
    train: TrainConfig = TrainConfig()
    regrowth: RegrowthConfig = RegrowthConfig()
    sweep: SweepConfig = SweepConfig()
    gradual: GradualConfig = GradualConfig()
    evaluate: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _can_interpolate(self) -> Recipe:
        if INTERPOLATE in (self.arms or []):
            if PLAIN not in (self.arms or []):
                raise ValueError("arms: `interpolate` is made out of `sft`; name both")
            if self.train.method == "lora" and not self.train.merge_adapter:
                raise ValueError("arms: `interpolate` needs whole models; set train.merge_adapter: true")
        return self

    @model_validator(mode="after")
    def _can_compare_general_data(self) -> Recipe:
        named = GENERAL in (self.arms or [])
        if named and not self.data.general:
            raise ValueError("arms: `general` needs data.general, the file to replay")
        if self.data.general and self.arms is not None and not named:
            raise ValueError("data.general is replayed by the arm `general`; name it in arms, or leave arms out")
        if self.auto.pilot_rows and self.arms is not None and not any(map(is_grown, self.arms)):
            raise ValueError("auto.pilot_rows chooses how much is grown, and no arm has grown replay")
        if self.data.general and self.train.mixture.controller != "none":
            raise ValueError("data.general is compared at a fixed ratio, with train.mixture.controller: none")
        return self

    @model_validator(mode="after")
    def _can_regrow(self) -> Recipe:
        watching = self.train.mixture.controller == "forgetting"
        if self.regrowth.tokens and not (watching or self.sweep.regrown):
            raise ValueError("regrowth.tokens needs train.mixture.controller: forgetting, which says what to grow "
                             "(in a sweep: sweep.regrown)")  # fmt: skip
        if watching and not self.curate.watch_dialogues:
            raise ValueError("train.mixture.controller: forgetting needs curate.watch_dialogues, say 8")
        return self

    @model_validator(mode="after")
    def _can_sweep_regrown(self) -> Recipe:
        if not self.sweep.regrown:
            return self
        if not self.sweep.replay_ratios:
            raise ValueError("sweep.regrown is for a sweep; name sweep.replay_ratios")
        if not (self.regrowth.tokens and self.curate.watch_dialogues):
            raise ValueError("sweep.regrown needs regrowth.tokens (the budget) and curate.watch_dialogues, say 8")
        if self.train.mixture.controller != "none":
            raise ValueError("sweep.regrown compares with a fixed ratio, with train.mixture.controller: none")
        return self

    @model_validator(mode="after")
    def _can_sweep(self) -> Recipe:
        if not self.sweep.replay_ratios:
            return self
        if self.arms is not None or not self.compare:
            raise ValueError("sweep.replay_ratios says which models there are; leave arms and compare out")
        if self.train.mixture.controller == "forgetting":
            raise ValueError("sweep.replay_ratios compares fixed ratios, without train.mixture.controller: forgetting")
        if self.auto.pilot_rows:
            raise ValueError("sweep.replay_ratios tries ratios on all of your data; leave auto.pilot_rows out")
        if self.sweep.equal_tokens and self.mix.replay_unit != "tokens":
            raise ValueError("sweep.equal_tokens counts tokens; set mix.replay_unit: tokens")
        return self

    def arm_ratios(self) -> dict[str, float]:
        """The arms to train, plain SFT first, and the replay ratio of each."""
        if self.sweep.replay_ratios:
            there: dict[Source, bool] = {
                "grown": True, "general": bool(self.data.general), "regrown": self.sweep.regrown,
            }  # fmt: skip
            return {at_ratio(r, s): r for s, wanted in there.items() if wanted for r in self.sweep.replay_ratios}
        ratios = {PLAIN: 0.0, REPLAY: self.mix.replay_ratio}
        if self.data.general:
            ratios[GENERAL] = self.mix.replay_ratio
        if self.arms is not None:
            return {arm: ratio for arm, ratio in ratios.items() if arm in self.arms}
        return {arm: ratio for arm, ratio in ratios.items() if arm != PLAIN or self.compare}

    def train_of(self, arm: str) -> TrainConfig:
        """How an arm is trained on its mix, which has all epochs laid out, each with its own replay."""
        train = self.train.model_copy(update={"num_train_epochs": 1.0})
        if is_general(arm) and self.data.general_loss == "hard":
            return train.model_copy(update={"replay_loss": "hard"})
        if is_regrown(arm):
            mixture = train.mixture.model_copy(update={"controller": "forgetting"})
            return train.model_copy(update={"mixture": mixture})
        return train

    def epochs_of(self, arm: str) -> float:
        """Passes of an arm over the user's data."""
        epochs = self.train.num_train_epochs
        if not (self.sweep.replay_ratios and self.sweep.equal_tokens):
            return epochs
        ratios = self.arm_ratios()
        return epochs * ((1 - ratios[arm]) / (1 - max(ratios.values())))


def _size(node: yaml.Node, memo: dict[int, int]) -> int:
    """Nodes below ``node`` with every alias expanded; memoised, so a 'billion laughs' file costs nothing to count."""
    if id(node) in memo:
        return memo[id(node)]
    memo[id(node)] = MAX_NODES + 1  # a cycle counts as too large
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_size(k, memo) + _size(v, memo) for k, v in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(v, memo) for v in node.value)
    memo[id(node)] = min(total, MAX_NODES + 1)
    return memo[id(node)]


def _lines(node: yaml.Node, path: tuple[str, ...], out: dict[tuple[str, ...], int], file: str) -> None:
    out[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise RecipeError(f"the key '{name}' stands twice", where=f"{file}:{key.start_mark.line + 1}")
            seen.add(name)
            _lines(value, (*path, name), out, file)
            out[(*path, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _lines(value, (*path, str(i)), out, file)


def _parse(text: str, file: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    lines: dict[tuple[str, ...], int] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}, lines
        if _size(root, {}) > MAX_NODES:
            raise RecipeError(f"the recipe expands to more than {MAX_NODES:,} values", where=file)
        _lines(root, (), lines, file)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"not valid YAML: {error.problem}", where=f"{file}:{line}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"not valid YAML: {error}", where=file) from error
    if not isinstance(data, dict):
        raise RecipeError("a recipe is a mapping of sections (model:, data:, grow:, ...)", where=f"{file}:1")
    return data, lines


def _override(data: dict[str, Any], item: str) -> list[tuple[str, ...]]:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"'{item}' is not of the form section.key=value",
            where="--set",
            hint="for example --set mix.replay_ratio=0.2",
        )
    try:
        found = read_value(value)
    except RecipeError as error:
        raise RecipeError(f"the value of '{key}' is {error.message}: {value[:200]}", where="--set") from error
    return _put(data, key.strip(), found)


def _put(data: dict[str, Any], key: str, value: Any) -> list[tuple[str, ...]]:
    """Set ``key``. The keys of a whole section are set one by one: what else the section holds was not spoken of."""
    path = tuple(key.split("."))
    if isinstance(value, Mapping) and _known_keys(path):
        return [done for name, inner in value.items() for done in _put(data, f"{key}.{name}", inner)]
    spot = data
    for name in path[:-1]:
        inner = spot[name] = {} if spot.get(name) is None else spot[name]
        if not isinstance(inner, dict):
            raise RecipeError(f"'{name}' in '{key}' is a value, not a section", where="--set")
        spot = inner
    spot[path[-1]] = value
    return [path]


def read_value(text: str) -> Any:
    """One value of a recipe in YAML, as ``--set`` takes it.

    Raises:
        RecipeError: Not YAML, or YAML that expands to more than `MAX_NODES` values.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _size(root, {}) > MAX_NODES:
            raise RecipeError(f"longer than {MAX_NODES:,} values")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError("not valid YAML") from error


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            if (found := _model_of(inner)) is not None:
                return found
    return None


def _known_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for name in path:
        info = model.model_fields.get(name)
        inner = _model_of(info.annotation) if info else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _explain(
    error: ValidationError, file: str, lines: dict[tuple[str, ...], int], sets: dict[tuple[str, ...], str]
) -> RecipeError:
    first = error.errors(include_url=False)[0]
    loc = tuple(str(p) for p in first["loc"])
    # A union adds the name of the branch that failed behind the field; the longest known prefix is the place.
    known = [loc[:n] for n in range(len(loc), 0, -1) if loc[:n] in lines or loc[:n] in sets]
    place = known[0] if known else loc
    # A key that was put where the name of its variable belongs must not be printed.
    secret = loc[-1:] == ("api_key_env",)
    if place in sets:
        where = sets[place].partition("=")[0] if secret else sets[place]
    elif place in lines:
        where = f"{file}:{lines[place]}: {'.'.join(place)}"
    else:
        where = ".".join(loc) or file
    if first["type"] == "extra_forbidden":
        options = _known_keys(loc[:-1])
        close = difflib.get_close_matches(loc[-1], options, n=1)
        section = ".".join(loc[:-1]) or "the recipe"
        hint = f"did you mean '{close[0]}'?" if close else f"{section} knows: {', '.join(options)}"
        return RecipeError(f"unknown key '{loc[-1]}'", where=where, hint=hint)
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    long = isinstance(given, (dict, list)) and len(str(given)) > 80
    shown = "" if secret or not loc or long else f" (got {given!r})"
    more = len(error.errors()) - 1
    return RecipeError(
        f"{message}{shown}", where=where, hint=f"{more} more problem(s) after this one" if more else None
    )


def parse_recipe(
    text: str, *, file: str = "recipe", overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> Recipe:
    """Make a recipe of YAML text, ``options`` (``{"mix.replay_ratio": 0.2}``) and ``a.b=c`` overrides, the last first.

    Raises:
        RecipeError: Names the file, line and field (or the override) and what is wrong with it.
    """
    data, lines = _parse(text, file)
    sets = {path: ".".join(path) for key, value in (options or {}).items() for path in _put(data, key, value)}
    sets |= {path: f"--set {item}" for item in overrides for path in _override(data, item)}
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, file, lines, sets) from error


def load_recipe(path: str | Path, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe file; see `parse_recipe`. A relative ``data.path`` stays relative to the working directory."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 text (byte {error.start})", where=str(path)) from error
    except OSError as error:
        raise RecipeError(error.strerror or str(error), where=str(path), hint="`regrow init` writes one") from error
    return parse_recipe(text, file=str(path), overrides=overrides, options=options)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `parse_recipe` reads it back to an equal object."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


MARKS = (
    "[P] the paper's value; [C] the released code's; [R] from reviews of the paper; [M] recalled, not looked up; "
    "[G] our own choice"
)
"""Where a default comes from, as its description says it."""

MAIN_KEYS = (
    *("seed", "compare", "model.model_name_or_path"),
    *("data.path", "data.format", "data.columns", "data.test_size"),
    *("grow.engine", "grow.shape", "grow.turns", "grow.topics", "grow.tokens"),
    *("mix.replay_ratio", "train.method", "train.replay_loss", "train.learning_rate", "train.num_train_epochs"),
    *("train.max_length", "train.per_device_train_batch_size", "train.gradient_accumulation_steps"),
    *("evaluate.suites", "evaluate.n_facts"),
)
"""What `regrow init` shows unless it is asked for all: what a first run of one's own decides."""


def commented_recipe(model: str = "smollm2", data: str = "data.jsonl", *, every: bool = False) -> str:
    """A recipe with the main keys (or ``every`` key), their defaults and what they do, for `regrow init`."""
    values = Recipe.model_validate({"model": {"model_name_or_path": model}, "data": {"path": data}})
    shown = "Every key is shown with its default" if every else "The main keys are shown with their defaults"
    more = "" if every else "# All others: regrow init --all, or docs/reference/recipe.md.\n"
    head = (
        f"# A Regrow recipe. {shown}; delete what you do not change.\n{more}"
        f"# Marks: {MARKS}.\n# Check it: regrow validate THIS_FILE   Run it: regrow run THIS_FILE\n"
    )
    return head + "\n" + "\n".join(_commented(values, 0, None if every else MAIN_KEYS)) + "\n"


def _commented(section: BaseModel, depth: int, only: Sequence[str] | None, path: str = "") -> list[str]:
    pad = "  " * depth
    out: list[str] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            if inner := _commented(value, depth + 1, only, f"{path}{name}."):
                doc = (type(value).__doc__ or "").strip().split("\n")[0]
                out += [*([""] if depth == 0 else []), f"{pad}# {doc}", f"{pad}{name}:", *inner]
            continue
        if only is not None and f"{path}{name}" not in only:
            continue
        for line in (info.description or "").strip().split("\n"):
            if line:
                out.append(f"{pad}# {line.strip()}")
        dumped = section.model_dump(mode="json", include={name})
        for line in yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True, width=110).rstrip().split("\n"):
            out.append(f"{pad}{line}")
    return out

"""The dialogues of a corpus as token rows: the model's own tokens, never encoded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regrow.errors import DataError
from regrow.mix.table import Shelf, record, shelve
from regrow.mix.tokenize import NO_ID, TokenRow, encode, encode_text
from regrow.mix.trees import Bundle, shared_nodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from regrow.grow.corpus import Dialogue
    from regrow.mix.config import MixConfig
    from regrow.models.turns import Turns

TopK = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class GrownPath:
    """A dialogue that fits: its nodes root to leaf, as many as ``max_length`` leaves of it.

    Attributes:
        starts: Tokens before the content of each node.
        size: Tokens in all.
    """

    id: str
    topic: str
    nodes: tuple[str, ...]
    text: bool
    system: str | None
    cut: bool
    starts: tuple[int, ...]
    size: int


class GrownRows:
    """The dialogues of a corpus that fit, with their sizes in tokens.

    Only lengths are read at first; `load` fetches the tokens of what was chosen.

    Args:
        corpus_dir: See `regrow.grow.corpus`.
        tokenizer: The model's.
        turns: Gives its turn markers; not called for plain texts.
        cfg: ``max_length``, ``system_prompt``, ``tree_loss``.
        dropped, shortened: Counted into.
        which: The file of dialogues.

    Raises:
        DataError: No dialogue fits, or a dialogue names a node that is not there.
    """

    def __init__(
        self,
        corpus_dir: Path,
        tokenizer: PreTrainedTokenizerBase,
        turns: Any,
        cfg: MixConfig,
        *,
        dropped: Counter[str],
        shortened: Counter[str],
        which: str | None = None,
    ) -> None:
        from regrow.grow.corpus import DIALOGUES, read_dialogues

        self._dir, self._tokenizer, self._turns_of, self._cfg = corpus_dir, tokenizer, turns, cfg
        lengths = dict(_lengths(corpus_dir))
        self.paths: list[GrownPath] = []
        self.sizes: list[int] = []
        seen: set[str] = set()
        found = read_dialogues(corpus_dir, which or DIALOGUES)
        self.n_dialogues = len(found)
        for dialogue in found:
            try:
                contents = [lengths[n] for n in dialogue.node_ids]
            except KeyError as missing:
                raise DataError(
                    f"dialogue '{dialogue.id}' names node {missing}, which is not in nodes.parquet",
                    where=str(corpus_dir),
                    hint="grow or curate again",
                ) from None
            path = self._fit(dialogue, contents)
            if path is None:
                dropped["replay dialogues longer than max_length"] += 1
                continue
            if path.cut and path.nodes[-1] in seen:
                dropped["replay dialogues equal to another one after the cut to max_length"] += 1
                continue
            if path.cut:
                shortened["replay dialogues that lost their last turns"] += 1
                seen.add(path.nodes[-1])
            self.paths.append(path)
            self.sizes.append(path.size)
        if not self.paths:
            raise DataError(
                "the corpus has no dialogue to replay",
                where=str(corpus_dir),
                hint="grow more, or raise mix.max_length",
            )
        self.topics = [p.topic for p in self.paths]
        self.topk = 0
        self._uses: Counter[str] = Counter()
        self._shelf: Shelf | None = None
        self._row: dict[str, int] = {}

    def _fit(self, dialogue: Dialogue, contents: Sequence[int]) -> GrownPath | None:
        """The start of a dialogue that fits; from lengths alone, as pieces are encoded separately."""
        said = list(dialogue.messages)
        system = said.pop(0)["content"] if said and said[0]["role"] == "system" else self._cfg.system_prompt
        text = len(said) == 1 and said[0]["role"] == "assistant"
        size = len(encode_text(self._tokenizer, [], ended=False).ids) if text else 0
        best, best_size = 0, 0
        starts: list[int] = []
        for at, length in enumerate(contents):
            starts.append(size if text else size + self._before(at, system))
            size = starts[-1] + length
            ends = text or at % 2 == 1
            whole = size if text else size + (self._closing() if ends else 0)
            if text and at == len(contents) - 1:
                whole += 1 if self._tokenizer.eos_token_id is not None else 0
            if ends and whole <= self._cfg.max_length:
                best, best_size = at + 1, whole
            if not text and ends:
                size = whole
        if not best:
            return None
        nodes, cut = tuple(dialogue.node_ids[:best]), best < len(contents)
        return GrownPath(dialogue.id, dialogue.topic, nodes, text, system, cut, tuple(starts[:best]), best_size)

    @lru_cache(maxsize=4096)  # noqa: B019  (few markers; lives as long as the rows)
    def _before(self, at: int, system: str | None) -> int:
        turns: Turns = self._turns_of()
        if at == 0:
            turns = turns.with_system(system) if system is not None else turns
            return len(turns.encode(self._tokenizer, turns.opening, first=True))
        marker = turns.user_open if at % 2 == 0 else turns.assistant_open
        return len(turns.encode(self._tokenizer, marker, first=False))

    @lru_cache(maxsize=1)  # noqa: B019
    def _closing(self) -> int:
        turns: Turns = self._turns_of()
        return len(turns.encode(self._tokenizer, turns.assistant_close, first=False))

    def load(self, chosen: Sequence[int], folder: Path) -> None:
        """Fetch the nodes of the chosen dialogues into a memory-mapped file in ``folder``, and count the paths.

        ``tree_loss: once`` divides by the number of distinct chosen dialogues through a node, so that a dialogue used
        twice counts twice, as a second pass over it does.
        """
        self._uses = Counter(node for i in set(chosen) for node in self.paths[i].nodes)
        shelf = folder / "nodes.arrow"
        self._row, self.topk = _fetch(self._dir, self._uses.keys(), shelf)
        self._shelf = Shelf(shelf)

    def records(self, bundle: Bundle) -> Iterator[dict[str, Any]]:
        """The table rows of a bundle's dialogues; each says how many tokens it shares with the row before it.

        A dialogue's uses count from 0; from the second on they go into the id.
        """
        before: tuple[GrownPath, TokenRow] | None = None
        for index, use in bundle.members:
            path = self.paths[index]
            row = self._encode(path)
            shared = _shared(*before, path, row) if before is not None else 0
            before = path, row
            yield self._record(path, row, use, shared)

    def _record(self, path: GrownPath, row: TokenRow, use: int, shared: int) -> dict[str, Any]:
        if self._cfg.tree_loss == "once":
            for node, (a, b), (c, d) in zip(path.nodes, row.spans, row.closing, strict=True):
                row.weights[a:b] /= self._uses[node]
                row.weights[c:d] /= self._uses[node]
        row_id = path.id if use == 0 else f"{path.id}#{use + 1}"
        top = self._top(path, row) if self.topk else None
        return record(row_id, "replay", path.topic, row.ids, row.weights, top, shared)

    def _cell(self, node: str, name: str) -> Any:
        assert self._shelf is not None, "load comes first"
        return self._shelf.value(self._row[node], name)

    def _encode(self, path: GrownPath) -> TokenRow:
        contents = [self._cell(n, "token_ids") for n in path.nodes]
        if path.text:
            # A text that its cap ended has no end to learn; nor has one that was cut.
            ended = not path.cut and self._cell(path.nodes[-1], "finish") == "stop"
            return encode_text(self._tokenizer, [c.tolist() for c in contents], ended=ended)
        messages = [{"role": ("user", "assistant")[i % 2], "content": ""} for i in range(len(contents))]
        if path.system is not None:
            messages.insert(0, {"role": "system", "content": path.system})
        row = encode(self._tokenizer, self._turns_of(), messages, [c.tolist() for c in contents])
        for node, (a, b) in zip(path.nodes, row.closing, strict=True):
            if self._cell(node, "finish") == "length":
                row.weights[a:b] = (
                    0.0  # trimmed at its cap: the model would have gone on, so it must not learn to stop
                )
        return row

    def _top(self, path: GrownPath, row: TokenRow) -> TopK:
        """``(trained positions, k)`` ids and log-probabilities; `NO_ID` and -inf where nothing is stored."""
        ids = np.full((len(row.ids), self.topk), NO_ID, dtype=np.int32)
        logprobs = np.full((len(row.ids), self.topk), -np.inf, dtype=np.float32)
        for node, (a, b), (c, d) in zip(path.nodes, row.spans, row.closing, strict=True):
            stored, values = self._cell(node, "top_ids"), self._cell(node, "top_logprobs")
            if stored is None or not len(stored):
                continue
            stored, values = stored.reshape(-1, self.topk), values.reshape(-1, self.topk)
            ids[a:b], logprobs[a:b] = stored[: b - a], values[: b - a]
            if len(stored) > b - a and d > c:  # the distribution over what ends the turn, where it was scored
                ids[c], logprobs[c] = stored[b - a], values[b - a]
        trained = row.weights > 0
        return ids[trained], logprobs[trained]


def _shared(one: GrownPath, a: TokenRow, two: GrownPath, b: TokenRow) -> int:
    """Tokens at the beginning that are equal and lie before the first node that differs: equal tokens of different
    nodes have different distributions stored."""
    n = shared_nodes(one, two)
    end = min(row.spans[n][0] if n < len(row.spans) else len(row.ids) for row in (a, b)) if n else 0
    return next((i for i in range(end) if a.ids[i] != b.ids[i]), end)


def _scan(corpus_dir: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from regrow.errors import RunError
    from regrow.grow.corpus import NODES

    if not (corpus_dir / NODES).is_file():
        raise RunError("no corpus is here", where=str(corpus_dir), hint="`regrow grow` makes one")
    try:
        with pq.ParquetFile(corpus_dir / NODES) as file:
            yield from file.iter_batches(batch_size=1024, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"the nodes cannot be read: {error}", where=str(corpus_dir / NODES), hint="grow or curate again"
        ) from error


def _lengths(corpus_dir: Path) -> Iterator[tuple[str, int]]:
    import pyarrow.compute as pc

    for batch in _scan(corpus_dir, ["id", "token_ids"]):
        yield from zip(batch["id"].to_pylist(), pc.list_value_length(batch["token_ids"]).to_pylist(), strict=True)


def _fetch(corpus_dir: Path, wanted: Any, shelf: Path) -> tuple[dict[str, int], int]:
    """Copy the wanted nodes to ``shelf``; returns node id -> row, and the k of their stored distributions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows: dict[str, int] = {}
    sizes: list[npt.NDArray[np.int64]] = []
    columns = pa.schema(
        {
            "token_ids": pa.list_(pa.int32()),
            "top_ids": pa.list_(pa.int32()),
            "top_logprobs": pa.list_(pa.float32()),
            "finish": pa.string(),
        }
    )
    with shelve(shelf, columns) as writer:
        for batch in _scan(corpus_dir, ["id", *columns.names]):
            ids = batch["id"].to_pylist()
            mask = [i in wanted for i in ids]
            if not any(mask):
                continue
            rows.update((i, len(rows)) for i, use in zip(ids, mask, strict=True) if use)
            part = batch.filter(pa.array(mask)).select(columns.names)
            writer.write_batch(pa.RecordBatch.from_arrays(part.columns, schema=columns))
            pair = [
                pc.fill_null(pc.list_value_length(part[c]), 0).to_numpy(zero_copy_only=False)
                for c in columns.names[:2]
            ]
            sizes.append(np.stack(pair, axis=1))
    return rows, stored_k(np.concatenate(sizes) if sizes else np.empty((0, 2), np.int64), str(corpus_dir))


def stored_k(sizes: npt.NDArray[np.int64], where: str) -> int:
    """k of the stored distributions, 0 when there are none.

    A node of n tokens stores n rows of k entries, or n + 1 with the token that ends it; one node alone may leave open
    which, all together do not.

    Args:
        sizes: ``(nodes, 2)``: tokens, stored entries.
        where: Named in the error.

    Raises:
        DataError: No k fits all nodes.
    """
    some = np.unique(sizes[sizes[:, 1] > 0], axis=0)
    if not len(some):
        return 0
    common: set[int] | None = None
    for n, entries in some.tolist():
        fits = {entries // rows for rows in (n, n + 1) if rows and entries % rows == 0}
        common = fits if common is None else common & fits
    if not common:
        raise DataError(
            "the stored log-probabilities do not have the same number at every position",
            where=where,
            hint="grow again",
        )
    return max(common)

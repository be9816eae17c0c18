"""Progress for long work: a bar with ETA on a terminal, plain lines elsewhere, events for whoever watches the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EventSink = Callable[[str, dict[str, Any]], None]
_sinks: list[EventSink] = []

PLAIN_EVERY_S = 10.0
EVENT_EVERY_S = 1.0


@contextmanager
def event_sink(sink: EventSink) -> Iterator[None]:
    """While the block runs, every progress step and `note` is also passed to ``sink(kind, data)``."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


def emit(kind: str, **data: Any) -> None:
    """Pass an event to the open sinks (a run's ``events.jsonl``, the live page)."""
    for sink in list(_sinks):
        sink(kind, data)


def note(text: str) -> None:
    """One line for the person at the keyboard, on stderr, above any bar."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
    emit("note", text=text)


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


class Task:
    """One piece of long work; see `task`."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.stats: dict[str, Any] = {}
        self.started = time.monotonic()
        self._skipped = 0.0
        self._last_line = self.started
        self._last_event = self.started - EVENT_EVERY_S  # a watcher is told of the first step at once

    def skip(self, amount: float) -> None:
        """Count work that an earlier run already did; it does not enter the rate behind the ETA."""
        self.done += amount
        self._skipped += amount
        self._show()

    def advance(self, amount: float = 1, **stats: Any) -> None:
        """Count ``amount`` more as done; ``stats`` are shown behind the bar (``tok_s=812, kept=40``)."""
        self.done += amount
        self.stats.update(stats)
        self._show()

    def eta(self) -> float | None:
        """Seconds left at the rate so far, or None when nothing is known yet."""
        fresh = self.done - self._skipped
        if self.total is None or fresh <= 0:
            return None
        return max(0.0, (self.total - self.done) * (time.monotonic() - self.started) / fresh)

    def _describe(self) -> str:
        return "  ".join(
            f"{k} {v:,.0f}"
            if isinstance(v, float) and abs(v) >= 100
            else f"{k} {v:.3g}"
            if isinstance(v, float)
            else f"{k} {v}"
            for k, v in self.stats.items()
        )

    def _show(self) -> None:
        now = time.monotonic()
        if _sinks and now - self._last_event >= EVENT_EVERY_S:
            self._last_event = now
            self._event()
        if now - self._last_line >= PLAIN_EVERY_S:
            self._last_line = now
            self._line()

    def _event(self) -> None:
        emit(
            "progress",
            task=self.label,
            done=self.done,
            skipped=self._skipped,
            total=self.total,
            unit=self.unit,
            eta=self.eta(),
            **self.stats,
        )

    def _line(self) -> None:
        of = f"/{self.total:,.0f}" if self.total is not None else ""
        eta = self.eta()
        tail = f"  ETA {_clock(eta)}" if eta is not None else ""
        print(
            f"{self.label}: {self.done:,.0f}{of} {self.unit}{tail}  {self._describe()}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    def finish(self) -> None:
        """Called by `task` when the block ends without an error."""
        self._event()
        spent = time.monotonic() - self.started
        if spent >= 1:
            print(
                f"{self.label}: {self.done:,.0f} {self.unit} in {_clock(spent)}  {self._describe()}".rstrip(),
                file=sys.stderr,
                flush=True,
            )


class _BarTask(Task):
    def __init__(self, label: str, total: float | None, unit: str) -> None:
        super().__init__(label, total, unit)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[stats]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._id = self._bar.add_task(label, total=total, stats="")

    def _line(self) -> None:
        pass

    def _show(self) -> None:
        super()._show()
        self._bar.update(self._id, completed=self.done, stats=self._describe())

    def finish(self) -> None:
        self._event()

    def close(self) -> None:
        self._bar.stop()


@contextmanager
def task(label: str, total: float | None, unit: str = "items") -> Iterator[Task]:
    """Show progress of one piece of work.

    Args:
        label: What is being done, lower case: ``growing``, ``training regrow``.
        total: Amount of work in ``unit``; None when unknown (no ETA then).
        unit: ``nodes``, ``tokens``, ``steps``, ``items``.
    """
    if sys.stderr.isatty():
        bar = _BarTask(label, total, unit)
        try:
            yield bar
            bar.finish()
        finally:
            bar.close()
    else:
        plain = Task(label, total, unit)
        yield plain
        plain.finish()

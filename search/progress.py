"""What people see while a search runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from search.results import Row


class Listener(Protocol):
    """Who wants to know how a search goes on."""

    def stage(self, text: str, trials: int | None = None) -> None:
        """The next part of the work begins; `trials` is how many trials it has."""

    def trial_ended(self, row: Row) -> None:
        """One trial is over."""


class Silence:
    """Listens and says nothing."""

    def stage(self, text: str, trials: int | None = None) -> None: ...

    def trial_ended(self, row: Row) -> None: ...


class _Best:
    """Remembers the best value of the objective, to be shown beside progress."""

    def __init__(self, objective: str, mode: str) -> None:
        self.objective, self._sign = objective, 1 if mode == "min" else -1
        self._best: Row | None = None

    def see(self, row: Row) -> None:
        if self.value(row) is not None and self._rank(row) < self._rank(self._best):
            self._best = row

    def value(self, row: Row | None) -> float | None:
        value = row.figures.get(self.objective) if row else None
        return value if value is not None and math.isfinite(value) else None

    def _rank(self, row: Row | None) -> float:
        value = self.value(row)
        return float("inf") if value is None else self._sign * value

    def __str__(self) -> str:
        if self._best is None:
            return ""
        return f"best {self.objective} {self.value(self._best):.3f}: {self._best.policy}"


class PlainLines:
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console, objective: str, mode: str) -> None:
        self._console, self._best = console, _Best(objective, mode)
        self._done, self._total = 0, 0

    def stage(self, text: str, trials: int | None = None) -> None:
        self._done, self._total = 0, trials or 0
        self._say(text)

    def trial_ended(self, row: Row) -> None:
        self._done += 1
        value = self._best.value(row)
        figure = row.status if value is None else f"{self._best.objective} {value:.3f}"
        note = f" ({row.failure})" if row.failure else ""
        self._say(f"{self._done}/{self._total} {figure} {row.policy}{note}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveBar(AbstractContextManager["LiveBar"]):
    """A bar per stage with the best policy so far."""

    def __init__(self, console: Console, objective: str, mode: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[cyan]{task.fields[best]}", table_column=None),
            console=console,
        )
        self._best = _Best(objective, mode)
        self._task: TaskID | None = None

    def __enter__(self) -> LiveBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish_stage()
        self._progress.stop()

    def stage(self, text: str, trials: int | None = None) -> None:
        self._finish_stage()
        self._task = self._progress.add_task(text, total=trials, best="")

    def trial_ended(self, row: Row) -> None:
        self._best.see(row)
        if row.failure:
            self._progress.console.print(
                f"[yellow]{escape(str(row.policy))}: {escape(row.failure)}"
            )
        if self._task is not None:
            self._progress.update(self._task, advance=1, best=escape(str(self._best)))

    def _finish_stage(self) -> None:
        if self._task is None:
            return
        task = next(t for t in self._progress.tasks if t.id == self._task)
        total = task.total or 1
        self._progress.update(self._task, total=total, completed=total)
        self._progress.stop_task(self._task)

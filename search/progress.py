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

    def note(self, text: str) -> None:
        """Something worth a line."""

    def stage(
        self, text: str, trials: int | None = None, figure: str = "", mode: str = "min"
    ) -> None:
        """The next part of the work begins: `trials` trials, told apart by `figure`."""

    def trial_ended(self, row: Row) -> None:
        """One trial of the stage is over."""


class Silence:
    """Listens and says nothing."""

    def note(self, text: str) -> None: ...

    def stage(
        self, text: str, trials: int | None = None, figure: str = "", mode: str = "min"
    ) -> None: ...

    def trial_ended(self, row: Row) -> None: ...


SILENCE = Silence()


class PlainLines:
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done, self._total, self._figure = 0, 0, ""

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stage(
        self, text: str, trials: int | None = None, figure: str = "", mode: str = "min"
    ) -> None:
        self._done, self._total, self._figure = 0, trials or 0, figure
        self.note(text)

    def trial_ended(self, row: Row) -> None:
        self._done += 1
        value = _value(row, self._figure)
        outcome = row.status if value is None else f"{self._figure} {value:.3f}"
        note = f" ({row.failure})" if row.failure else ""
        self.note(f"{self._done}/{self._total} {outcome} {row.policy}{note}")


class LiveBar(AbstractContextManager["LiveBar"]):
    """A bar per stage with the best policy so far."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[cyan]{task.fields[best]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._figure, self._mode, self._best = "", "min", math.inf

    def __enter__(self) -> LiveBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish_stage()
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stage(
        self, text: str, trials: int | None = None, figure: str = "", mode: str = "min"
    ) -> None:
        self._finish_stage()
        self._task = self._progress.add_task(text, total=trials, best="")
        self._figure, self._mode, self._best = figure, mode, math.inf

    def trial_ended(self, row: Row) -> None:
        assert self._task is not None
        if row.failure:
            self.note(f"{row.policy}: {row.failure}")
        self._progress.update(self._task, advance=1)
        value = _value(row, self._figure)
        if value is not None and (value if self._mode == "min" else -value) < self._best:
            self._best = value if self._mode == "min" else -value
            best = f"best {self._figure} {value:.3f}: {escape(str(row.policy))}"
            self._progress.update(self._task, best=best)

    def _finish_stage(self) -> None:
        if self._task is not None:
            total = self._progress.tasks[self._task].total or 1
            self._progress.update(self._task, total=total, completed=total)


def _value(row: Row, figure: str) -> float | None:
    value = row.figures.get(figure, math.nan)
    return value if math.isfinite(value) else None


def duration(seconds: float) -> str:
    """In words, by the two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"

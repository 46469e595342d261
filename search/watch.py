"""A run on a terminal, one frame after another until its search ends."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.progress import duration
from search.standing import until

# What `Standing.as_dict` gives, of a folder or from far away; of a search that has not begun there
# is nothing but `working` and `done`.
Told = Mapping[str, Any]
NOT_BEGUN = "not begun yet"

BARS = "▁▂▃▄▅▆▇█"
ROWS = 12  # running trials that are shown


def watch(look: Callable[[], Told], console: Console, *, once: bool = False) -> Told:
    """Shows what `look` tells until the search is done or nobody works on it, or `once`; returns
    the last of it. What is no terminal gets a line whenever trials began or ended."""
    if once:
        told = look()
        console.print(frame(told))
        return told
    if not console.is_terminal:
        said: list[str] = []

        def say(told: Told) -> None:
            text = line(told)
            if text not in said[-1:]:
                said.append(text)
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        return _followed(look, say)
    with Live(console=console, auto_refresh=False) as live:
        return _followed(look, lambda told: live.update(frame(told), refresh=True))


def _followed(look: Callable[[], Told], show: Callable[[Told], None]) -> Told:
    told: Told = {}
    for told in until(lambda told: told["done"] or not told["working"], look):
        show(told)
    return told


def frame(told: Told) -> RenderableType:
    """All there is to see at a moment."""
    if "stage" not in told:
        return Text(NOT_BEGUN)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("run", Text(told["run"]))
    table.add_row(told["stage"], _progress(told))
    table.add_row("trials", _states(told))
    if told["best"] is not None:
        best = Text(f"{told['best']:.4f}  {told['best_policy']}")
        table.add_row(f"best {told['objective']}", best)
    if told["history"]:
        values = told["history"]
        ends = f"  {values[0]:.4f} to {values[-1]:.4f}, the best after every probe"
        table.add_row("", Text(sparkline(values), style="cyan") + Text(ends, style="dim"))
    if told["last_failure"] is not None:
        table.add_row("last failure", Text(told["last_failure"], style="red"))
    table.add_row("time", _time(told))
    running, now = told["running"], time.time()
    if not running:
        return table
    trials = Table("running", "policy", "epoch", "for", box=None, header_style="dim")
    for trial in running[:ROWS]:
        epoch = f"{trial['epoch']}/{told['epochs']}"
        trials.add_row(
            trial["trial"], Text(trial["policy"]), epoch, duration(now - trial["began_at"])
        )
    more = [Text(f"and {len(running) - ROWS} more", style="dim")] if len(running) > ROWS else []
    return Group(table, Text(), trials, *more)


def line(told: Told) -> str:
    """The same in one line, which stays what it is while nothing begins or ends."""
    if "stage" not in told:
        return NOT_BEGUN
    parts = [f"{told['stage']} {_ended(told)}/{told['trials']}", _states(told)]
    if told["best"] is not None:
        parts.append(f"best {told['objective']} {told['best']:.4f} {told['best_policy']}")
    return ": ".join(parts[:2]) + "".join(f"; {part}" for part in (*parts[2:], *_end(told)))


def sparkline(values: Sequence[float]) -> str:
    """A bar for every value, the lowest one for the least."""
    low, high = min(values), max(values)
    if not math.isfinite(high - low) or high == low:
        return BARS[0] * len(values)
    return "".join(BARS[round((v - low) / (high - low) * (len(BARS) - 1))] for v in values)


def _progress(told: Told) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    ended, total = _ended(told), told["trials"]
    row.add_row(ProgressBar(total=max(total, 1), completed=ended, width=30), f"{ended}/{total}")
    return row


def _ended(told: Told) -> int:
    return sum(count for state, count in told["states"].items() if state != "running")


def _states(told: Told) -> str:
    counts = {state: told["states"].get(state, 0) for state in ("running", "finished", "stopped")}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    if told["failures"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(told["failures"].items()))
        parts.append(f"{told['states'].get('failed', 0)} failed ({kinds})")
    return ", ".join(parts) or "none yet"


def _time(told: Told) -> str:
    parts = [f"{duration(told['seconds'])} so far"]
    left = told["seconds_left"]
    if left is not None and told["working"] and not told["done"]:
        parts.append(f"{duration(left)} left of this stage")
    return ", ".join([*parts, *_end(told)])


def _end(told: Told) -> list[str]:
    if told["done"]:
        return ["done"]
    return [] if told["working"] else ["nobody works on it"]

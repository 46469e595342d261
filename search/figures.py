"""The figures of a run: what is drawn, the data behind it, and files of both.

Colours are those of a light page; where a figure lies inside a page they are the page's own, so
that it follows light and dark. Nothing here touches pyplot, whose state is global.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search.importance import Effect, Share
from search.results import FAILED, FINISHED, STOPPED
from spaces.atomic_write import atomic_write

MOST_POINTS = 1000  # of one figure: more are a cloud, and megabytes
MOST_BARS = 16
LABEL = 44  # letters of a policy in a legend
INK, QUIET, LINES, FIRST, SECOND, THIRD = (
    "#1b2230", "#5d6677", "#dde2ea", "#1f5fbf", "#b8500f", "#177a5b",
)  # fmt: skip
PAPER = "#fefefe"  # white, but for what is drawn in white
COLOURS = {
    INK: "ink", QUIET: "quiet", LINES: "lines", FIRST: "first", SECOND: "second", THIRD: "third",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may have dollars
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINES,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
}
WIDTH, HEIGHT, DPI = 4.0, 3.0, 200  # inches; dots an inch of the PNG


@dataclass(frozen=True)
class Plot:
    """One figure. `says` is its caption, which people who cannot see it rely on; `data` has all
    that is drawn."""

    name: str
    title: str
    says: str
    data: pd.DataFrame
    draw: Callable[[Axes], None]
    height: float = HEIGHT

    def figure(self) -> Figure:
        """The figure, for a notebook or a file."""
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(figure.add_subplot())
            return figure

    def svg(self) -> str:
        """The figure as an element of a page that may set the custom properties of `COLOURS`."""
        _, svg = self._drawn
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
        svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
        svg = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit", svg)
        svg = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = svg.replace(f"fill: {PAPER}", "fill: none")
        for colour, variable in COLOURS.items():
            svg = svg.replace(colour, f"var(--{variable})")
        label = f'role="img" aria-label="{escape(self.title)}: {escape(self.says)}"'
        return svg.replace("<svg", f"<svg {label}", 1)

    def save(self, folder: Path) -> None:
        """Writes NAME.svg, NAME.png and NAME.csv."""
        figure, svg = self._drawn
        with atomic_write(folder / f"{self.name}.svg") as temporary:
            temporary.write_text(svg, encoding="utf-8")
        with atomic_write(folder / f"{self.name}.png") as temporary, mpl.rc_context(STYLE):
            figure.savefig(temporary, format="png", dpi=DPI)
        with atomic_write(folder / f"{self.name}.csv") as temporary:
            self.data.to_csv(temporary, index=False)

    @cached_property
    def _drawn(self) -> tuple[Figure, str]:
        """The figure, which is laid out, and its SVG."""
        figure, text = self.figure(), StringIO()
        with mpl.rc_context(STYLE | {"svg.hashsalt": self.name}):
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # as it is: that is half of the time of drawing
        return figure, text.getvalue()


def history(probes: pd.DataFrame, objective: str, mode: str) -> Plot:
    """The objective of every probe in the order in which they ended, and the best so far. `probes`
    has `probe` (its number in that order), `status`, `value` and `best`."""
    finished, stopped = (probes[probes.status == s] for s in (FINISHED, STOPPED))
    failed = probes[probes.status == FAILED]

    def draw(axes: Axes) -> None:
        for of, face, label in ((finished, FIRST, "finished"), (stopped, "none", "stopped")):
            if len(part := _thin(of)):
                axes.scatter(part.probe, part.value, s=16, c=face, edgecolors=FIRST, lw=0.8,
                             alpha=0.75, label=label)  # fmt: skip
        if len(best):
            axes.step(probes.probe, probes.best, where="post", color=SECOND, lw=1.8,
                      label="best so far")  # fmt: skip
        else:  # nothing has a height then
            axes.set(ylim=(0, 1), yticks=[])
        if len(failed):
            floor = axes.get_ylim()[0]
            axes.scatter(failed.probe, [floor] * len(failed), marker="x", s=18, c=QUIET,
                         lw=1, label="failed", clip_on=False)  # fmt: skip
        axes.set(xlabel="probe, in the order in which they ended", ylabel=_better(objective, mode))
        axes.set_xlim(0, len(probes) + 1)
        axes.locator_params(axis="x", integer=True)
        _legend_above(axes)

    best = probes.best.dropna()
    said = f"{len(probes)} probe{'s' * (len(probes) > 1)}"
    if len(best):
        last = probes.probe[probes.best == best.iloc[-1]].iloc[0]
        said += f"; the best {objective} is {best.iloc[-1]:.4g}, found by probe {last}"
    return Plot("history", "Search history", f"{said}.", probes, draw)


def agreement(points: pd.DataFrame, objective: str, outcome: str, mode: str, says: str) -> Plot:
    """The objective of probes against an accuracy of the same policies. `points` has `policy`,
    `objective`, `accuracy` (a fraction) and `std` (of it over seeds, or NaN)."""

    def draw(axes: Axes) -> None:
        shown = _thin(points)
        if shown["std"].notna().any():
            axes.errorbar(shown.objective, shown.accuracy, yerr=shown["std"].fillna(0), fmt="none",
                          ecolor=QUIET, elinewidth=1, capsize=2)  # fmt: skip
        axes.scatter(shown.objective, shown.accuracy, s=20, c=FIRST, alpha=0.75, lw=0)
        axes.yaxis.set_major_formatter(_percent)
        axes.set(xlabel=_better(objective, mode), ylabel=outcome)
        axes.locator_params(axis="x", nbins=5)

    name = f"{objective}-{outcome}".replace(" ", "_").replace("-", "_")
    return Plot(name, f"{objective} against {outcome}", says, points, draw)


def importance(found: Sequence[Share], objective: str) -> Plot:
    """The share of the variance that hangs on each parameter."""
    shown = found[:MOST_BARS]

    def draw(axes: Axes) -> None:
        places = np.arange(len(shown))
        axes.barh(places, [100 * share.share for share in shown], color=FIRST, height=0.62)
        axes.set_yticks(places, [f"{s.parameter} ({s.policies})" for s in shown])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=f"share of the variance of {objective}, %", xlim=(0, None))

    first = found[0]
    says = (
        f"{first.parameter} matters most: {100 * first.share:.0f} % of the variance of {objective} "
        f"among the {first.policies} policies that have it (their number is in parentheses)."
    )
    height = _tall(len(shown))
    data = pd.DataFrame([vars(share) for share in found])
    return Plot("importance", "Importance of parameters", says, data, draw, height)


def operations(found: Sequence[Effect], objective: str, mode: str) -> Plot:
    """The difference that each operation goes with."""
    half = MOST_BARS // 2
    shown = found if len(found) <= MOST_BARS else [*found[:half], *found[-half:]]

    def draw(axes: Axes) -> None:
        places = np.arange(len(shown))
        values = np.array([effect.difference for effect in shown])
        bounds = np.array([effect.interval for effect in shown])
        axes.axvline(0, color=QUIET, lw=1)
        axes.errorbar(values, places, xerr=np.abs(bounds.T - values), fmt="none", ecolor=FIRST,
                      elinewidth=1.4)  # fmt: skip
        axes.scatter(values, places, s=26, c=FIRST, zorder=3)
        # A pair of policies that differ may have an interval that dwarfs all others.
        reach = 3 * float(np.abs(values).max())
        low, high = max(bounds.min(), -reach), min(bounds.max(), reach)
        axes.set_xlim(min(low, 0) - 0.03 * (high - low), max(high, 0) + 0.03 * (high - low))
        axes.set_yticks(places, [f"{e.operation} ({e.policies})" for e in shown])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=f"{_better(objective, mode)}, with minus without")

    clear = [e.operation for e in found if e.interval[0] > 0 or e.interval[1] < 0]
    says = "Lines are 95 % intervals, each by itself; the number of policies is in parentheses. "
    says += f"Zero is outside for {', '.join(clear)}." if clear else "None excludes zero."
    rows = [
        {k: v for k, v in vars(e).items() if k != "interval"}
        | {"low": e.interval[0], "high": e.interval[1]}
        for e in found
    ]
    data = pd.DataFrame(rows)
    return Plot("operations", "Operations and mixings", says, data, draw, _tall(len(shown)))


def front(points: pd.DataFrame, x: str, y: str, modes: tuple[str, str]) -> Plot:
    """Two objectives of every finished probe; `points` has both, `policy` and `front`, a bool."""
    ahead = points[points.front].sort_values(x)

    def draw(axes: Axes) -> None:
        others = _thin(points[~points.front])
        axes.scatter(others[x], others[y], s=16, c=QUIET, alpha=0.6, lw=0, label="beaten")
        axes.plot(ahead[x], ahead[y], "o-", color=SECOND, ms=5, lw=1.2, label="front")
        axes.set(xlabel=_better(x, modes[0]), ylabel=_better(y, modes[1]))
        _legend_above(axes)

    says = f"{len(ahead)} of {len(points)} policies are beaten by no other one in all objectives."
    return Plot(f"front_{y}", f"Front of {x} and {y}", says, points, draw)


def curves(epochs: pd.DataFrame, told_apart: Sequence[tuple[str, str]]) -> Plot:
    """Validation accuracy of promoted students by epoch. `epochs` has `policy`, `identity`, `seed`,
    `epoch` and `validation_accuracy`; `told_apart` are at most three identities with their labels,
    the others are drawn in the background."""

    def draw(axes: Axes) -> None:
        named = {identity for identity, _ in told_apart}
        label: str | None = "other policies"
        for identity, lines in epochs.groupby("identity"):
            if identity not in named:
                mean = lines.groupby("epoch").validation_accuracy.mean()
                axes.plot(mean.index, mean, color=QUIET, lw=0.9, alpha=0.55, label=label)
                label = None
        looks = ((FIRST, "-"), (SECOND, "--"), (THIRD, "-."))
        for (identity, name), (colour, line) in zip(told_apart, looks, strict=False):
            by_epoch = epochs[epochs.identity == identity].groupby("epoch").validation_accuracy
            mean = by_epoch.mean()
            axes.fill_between(mean.index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.13,
                              lw=0)  # fmt: skip
            axes.plot(
                mean.index,
                mean,
                color=colour,
                ls=line,
                lw=1.8,
                label=shorten(name, LABEL, placeholder=" …"),
            )
        axes.yaxis.set_major_formatter(_percent)
        axes.set(xlabel="epoch", ylabel="validation accuracy")
        axes.locator_params(axis="x", integer=True)
        axes.legend(loc="lower right")

    says = "Lines are means over seeds, bands reach from the worst seed to the best."
    return Plot("curves", "Students of full length by epoch", says, epochs, draw)


def _better(name: str, mode: str) -> str:
    return f"{name} ({'lower' if mode == 'min' else 'higher'} is better)"


def _percent(value: float, _: float) -> str:
    return f"{round(100 * value, 3):g} %"


def _tall(bars: int) -> float:
    return max(0.9 + 0.24 * bars, 1.6)


def _thin(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[:: -(-len(rows) // MOST_POINTS) or 1]


def _legend_above(axes: Axes) -> None:
    more: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4}
    axes.legend(**more, borderaxespad=0, columnspacing=1.2, handletextpad=0.4)

"""How results look on a terminal."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.progress import Listener, LiveBar, PlainLines, Silence
from search.results import Row, mean_and_std
from search.verdict import percent
from spaces.schemes import SCHEMES

if TYPE_CHECKING:
    from search.config import SearchConfig
    from search.stages import SearchResult
    from trainers.scoring import PolicyScore

ROWS_SHOWN = 12


@contextmanager
def progress(*, quiet: bool) -> Iterator[Listener]:
    """A listener on stderr: a live bar on a terminal, lines elsewhere, nothing when quiet."""
    console = Console(stderr=True)
    if quiet:
        yield Silence()
    elif console.is_terminal:
        with LiveBar(console) as bar:
            yield bar
    else:
        yield PlainLines(console)


def print_result(result: "SearchResult", config: "SearchConfig") -> None:
    """The ranking, the verdict and where everything lies; the best policy's path comes last."""
    console = _stdout()
    objective = config.search.objective
    table = Table(title=f"{len(result.rows)} policies, ranked by {objective}", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("policy", overflow="fold")
    for heading in (objective, "probe val.", "full val.", "full test"):
        table.add_column(heading, justify="right", no_wrap=True)
    promoted = [row for row in result.rows[ROWS_SHOWN:] if row.full_length]
    for row in (*result.rows[:ROWS_SHOWN], *promoted):
        table.add_row(str(result.rows.index(row) + 1), *_cells(row, objective))
    console.print(table)
    hidden = len(result.rows) - ROWS_SHOWN - len(promoted)
    if hidden > 0:
        console.print(f"{hidden} more in the table.", highlight=False)
    failed = sum(row.failure is not None for row in result.rows)
    if failed:
        console.print(f"{failed} trials failed; the column reason says why.", highlight=False)
    student = config.student.quantization
    console.print(
        f"\n[b]Verdict[/b] ({student}): {escape(result.verdict.sentence)}\n", soft_wrap=True
    )
    folder = result.folder
    for what, path in (
        ("ranking    ", folder.policies),
        ("report     ", folder.report),
        ("best policy", folder.best_policy),
    ):
        console.print(f"{what}  {folder.named(path)}", soft_wrap=True, highlight=False)


def _cells(row: Row, objective: str) -> tuple[str, ...]:
    value, probed = row.figures.get(objective), row.figures.get("validation_accuracy")
    name = escape(str(row.policy)) + ("" if row.status == "finished" else f" [dim]{row.status}")
    full = [
        percent(*mean_and_std([getattr(run, figure) for run in row.full_length]))
        for figure in ("validation_accuracy", "test_accuracy")
    ]
    return name, "" if value is None else f"{value:.3f}", percent(probed, None), *full


def print_scores(rows: "Sequence[tuple[str, PolicyScore]]", config: "SearchConfig") -> None:
    """The ranking by the teacher's score; all figures in nats."""
    teacher = config.teacher
    title = f"{config.data.name}, teacher {teacher.network}, lower score is better"
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="right")
    table.add_column("policy", overflow="fold")
    for heading in ("score", "D", "CMI", "entropy", "T.stddev"):
        table.add_column(heading, justify="right")
    for rank, (name, found) in enumerate(rows, start=1):
        figures = (found.score, found.centroid_divergence, found.cmi, found.entropy)
        cells = [f"{figure:.4f}" for figure in (*figures, found.teacher_stddev)]
        table.add_row(str(rank), escape(name), *cells)
    _stdout().print(table)


def print_schemes() -> None:
    """The named policies with what they do and where they come from."""
    table = Table("scheme", "what it does", "source")
    for name, found in SCHEMES.items():
        table.add_row(name, found.summary, found.citation)
    _stdout().print(table)


def _stdout() -> Console:
    # A pipe has no width of its own; 80 columns would fold policies that people read in logs.
    return Console(width=None if sys.stdout.isatty() else 132)

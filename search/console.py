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
    from search.compare import Comparison, Paired
    from search.config import SearchConfig
    from search.correlations import Correlation
    from search.results import FullLength
    from search.run_folder import RunFolder
    from search.stages import SearchResult
    from search.validation import Validation
    from trainers.scoring import PolicyScore

ROWS_SHOWN = 12
PREDICTIONS_SHOWN = 15


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
        console.print(f"{what}  {escape(folder.named(path))}", soft_wrap=True, highlight=False)


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


def print_validation(found: "Validation", folder: "RunFolder") -> None:
    """The recommendation, and the figures that lead to it, the run's own objective wherever it
    stands: Spearman's coefficients."""
    from search.predictors import OUTCOMES

    console, policies = _stdout(), len(found.candidates)
    objective = folder.read_marker()["objective"]
    title = f"What foretells the full length of {policies} policies (Spearman, +1 is perfect)"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("probe epochs", justify="right")
    for outcome in ("final validation loss", "final validation accuracy", "final test accuracy"):
        table.add_column(outcome, justify="right", no_wrap=True)
    shown = [
        prediction
        for place, prediction in enumerate(found.predictions)
        if place < PREDICTIONS_SHOWN or prediction.figure == objective
    ]
    for prediction in shown:
        cells = [_interval(prediction.outcomes[name]) for name in OUTCOMES]
        table.add_row(prediction.figure, str(prediction.epochs), *cells)
    console.print(table)
    hidden = len(found.predictions) - len(shown)
    if hidden > 0:
        table_of_all = folder.named(folder.validation.with_suffix(".csv"))
        console.print(f"{hidden} more in {escape(table_of_all)}", highlight=False, soft_wrap=True)
    if found.left_out:
        left_out = escape(", ".join(found.left_out))
        console.print(f"left out, since a probe or student failed: {left_out}", highlight=False)
    console.print(f"\n[b]Recommended[/b]: {escape(found.recommendation.sentence)}", soft_wrap=True)
    if found.recommendation.trusted:
        console.print("augury search --objective auto goes by that.", highlight=False)


def _interval(correlation: "Correlation") -> str:
    low, high = correlation.spearman_interval
    return f"{correlation.spearman:+.2f} ({low:+.2f} to {high:+.2f})"


def print_comparison(found: "Comparison") -> None:
    """Runs side by side, in the order in which they were named."""
    console = _stdout()
    table = Table("", *(f"run {n}" for n in range(1, len(found.runs) + 1)), show_lines=True)
    table.add_row("folder", *(escape(str(run.folder)) for run in found.runs))
    table.add_row("verdict", *(escape(v["sentence"] if v else "none yet") for v in found.verdicts))
    for key, values in found.settings.items():
        table.add_row(key, *(escape(str(value)) for value in values))
    for policy, of_runs in found.students.items():
        table.add_row(f"test, {escape(policy)}", *(_tested(students) for students in of_runs))
    console.print(table)
    for (first, second), pairs in found.pairs.items():
        for pair in pairs:
            console.print(_paired(pair, first, second), highlight=False, soft_wrap=True)


def _tested(students: "Sequence[FullLength]") -> str:
    return percent(*mean_and_std([s.test_accuracy for s in students])) or "-"


def _paired(pair: "Paired", first: int, second: int) -> str:
    seeds = f"{len(pair.seeds)} seed{'s' * (len(pair.seeds) > 1)}"
    noise = "noise unknown"
    if pair.interval is not None:
        low, high = pair.interval
        beyond = low > 0 or high < 0
        noise = f"{100 * low:+.1f} to {100 * high:+.1f}" + ("" if beyond else ", within the noise")
    points = f"{100 * pair.difference:+.1f} points ({noise}, {seeds} of both)"
    return f"run {second + 1} over run {first + 1}, {escape(pair.policy)}: {points}"


def print_schemes() -> None:
    """The named policies with what they do and where they come from."""
    table = Table("scheme", "what it does", "source")
    for name, found in SCHEMES.items():
        table.add_row(name, found.summary, found.citation)
    _stdout().print(table)


def _stdout() -> Console:
    # A pipe has no width of its own; 80 columns would fold policies that people read in logs.
    return Console(width=None if sys.stdout.isatty() else 132)

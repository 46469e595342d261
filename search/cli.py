"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from search.analysis_cli import app as analysis
from search.jobs_cli import app as jobs
from search.options import Config, Json, Overrides, Quiet, print_json
from search.report_cli import app as report
from search.student_cli import student
from search.teacher_cli import teacher
from search.watch_cli import app as watching

if TYPE_CHECKING:
    from search.progress import Listener
    from search.run_folder import RunFolder
    from search.stages import SearchResult

app = typer.Typer(
    help="Find the data augmentation under which a low-bit student ends up best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(teacher, name="teacher")
app.add_typer(student, name="student")
app.add_typer(watching)
app.add_typer(report)
app.add_typer(jobs)
app.add_typer(analysis)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"augury {version('augury')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None: ...


@app.command()
def search(
    config: Config = None,
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option(help="New folder or address (s3://...) of the run; default runs/DATA-TIME."),
    ] = None,
    *,
    objective: Annotated[
        str | None,
        typer.Option(help="Short for --set search.objective=...; auto is what validate found."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for the best augmentation policy.

    Probes policies as Ray Tune trials, trains the best and the controls to full length, and says
    which one validation prefers. The run folder then holds [b]policies.parquet[/b],
    [b]best_policy.json[/b], the whole config and Tune's own results.
    """
    from search.config import load_config
    from search.run_folder import RunFolder

    given = [*(overrides or ()), *([f"search.objective={objective}"] if objective else [])]
    settings = load_config(config, given)
    name = f"{settings.data.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder.at(run or Path("runs") / name)
    folder.require_new()

    from search.run import run_search

    _searched(lambda listen: run_search(settings, folder, listen), folder, as_json, quiet)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Run that was stopped, or finished.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Probes in all, to go on with a finished search.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a search, whatever ended it.

    Trials that ended are kept, trials that were running go on from their last epoch. What
    [b]search.trials[/b], [b]search.budget[/b], [b]search.max_failed_share[/b], [b]promotion[/b] and
    [b]cluster[/b] say in the run's config.yaml may be changed before.
    """
    from search.run_folder import RunFolder

    folder = RunFolder.open(run)

    from search.run import resume_search

    _searched(lambda listen: resume_search(folder, listen, trials), folder, as_json, quiet)


@app.command()
def promote(
    run: Annotated[str, typer.Argument(help="Run with probes.")],
    top: Annotated[int | None, typer.Option(min=1, help="Best policies, beside controls.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Students of each.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the best of a search to full length again, or more of them, and renew its verdict.

    Students that were trained are kept: only further policies and seeds are paid for. What is
    given goes into the run's config.yaml.
    """
    from search.run_folder import RunFolder

    folder = RunFolder.open(run)

    from search.run import promote_again

    def go(listen: "Listener") -> "SearchResult":
        return promote_again(folder, listen, top=top, seeds=seeds)

    _searched(go, folder, as_json, quiet, go_on="promote")


def _searched(
    go: "Callable[[Listener], SearchResult]",
    folder: "RunFolder",
    as_json: bool,
    quiet: bool,
    go_on: str = "resume",
) -> None:
    """Lets a search go and prints what it found, or why it ended and by which command it can
    `go_on`."""
    from search.config import load_config
    from search.console import print_result, progress
    from search.errors import SearchFailedError
    from search.table import read_parquet

    how = f"go on with: augury {go_on} {shlex.quote(str(folder))}"
    try:
        with progress(quiet=quiet) as listen:
            result = go(listen)
    except SearchFailedError as error:
        _complain(
            f"{error}; what was found is in {folder.named(folder.policies)}; {error.advice or how}"
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _complain(f"stopped; {how}" if folder.marker.exists() else "stopped")
        raise typer.Exit(130) from None
    if as_json:
        rows = read_parquet(folder.policies).to_pylist()
        verdict = result.verdict.as_dict()
        print_json({"run": str(folder), "verdict": verdict, "policies": rows})
    else:
        print_result(result, load_config(folder.config))


@app.command()
def score(
    policies: Annotated[
        list[str], typer.Argument(help="Schemes (see [b]augury schemes[/b]) or policy files.")
    ],
    config: Annotated[Path | None, typer.Option(help="YAML file with data and teacher.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank policies with the teacher alone, without training a student.

    The score is D - CMI on augmented training images (arXiv 2509.03850), lower is better. It
    finds harmful policies; which of the good ones is best takes a search.
    """
    from search.config import load_config

    settings = load_config(config, overrides or ())

    from search.console import print_scores, progress
    from spaces.schemes import policy_called
    from trainers.datasets import load_splits
    from trainers.scoring import score as score_policy
    from trainers.teacher import cached_teacher

    candidates = [policy_called(name).on(settings.data.base) for name in policies]
    splits = load_splits(settings.data)
    with progress(quiet=quiet) as listen:
        listen.stage(f"teacher {settings.teacher.network} on {splits.name}")
        teacher = cached_teacher(splits, settings.teacher)
        listen.stage(f"scoring {len(candidates)} policies")
        scores = [score_policy(policy, teacher, splits) for policy in candidates]
    rows = sorted(zip(policies, scores, strict=True), key=lambda row: row[1].score)
    if as_json:
        print_json([{"policy": name} | vars(found) for name, found in rows])
    else:
        print_scores(rows, settings)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Folder or address of a run.")],
    to: Annotated[
        str, typer.Option(help="File or address (s3://...) to write: .parquet, .csv or .json.")
    ],
) -> None:
    """Write the ranked policies of a run to one file, in the format of its ending.

    Also while the search runs, with what it has by then. Addresses are those of pyarrow and fsspec,
    with credentials and endpoint from the environment.
    """
    from search.destinations import export as write
    from search.run_folder import RunFolder
    from search.table import read_parquet
    from spaces.errors import UserError

    folder = RunFolder.open(run)
    if not folder.policies.exists():
        raise UserError(f"{folder.named(folder.policies)}: there is no table yet")
    table = read_parquet(folder.policies)
    write(table, to)
    print(f"{table.num_rows} policies in {to}")


@app.command()
def schemes(as_json: Json = False) -> None:
    """List the named policies of the literature; each can be followed by +cutmix or +mixup."""
    from search.console import print_schemes
    from spaces.schemes import SCHEMES

    if as_json:
        print_json(
            [{"name": n, "summary": s.summary, "citation": s.citation} for n, s in SCHEMES.items()]
        )
    else:
        print_schemes()


policy = typer.Typer(help="Look at a policy, or take it to another library.", no_args_is_help=True)
app.add_typer(policy, name="policy")
PolicyName = Annotated[str, typer.Argument(help="Policy file, or a scheme (see augury schemes).")]


@policy.command("show")
def show_policy(
    name: PolicyName,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG to draw: rows of images, several draws each.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=50, help="Images, one of a class.")] = 6,
    draws: Annotated[int, typer.Option(min=1, max=50, help="Draws of each.")] = 8,
    config: Annotated[Path | None, typer.Option(help="YAML file with the data to draw.")] = None,
) -> None:
    """Say in words what a policy does, and draw it on the data."""
    from search.config import load_config
    from spaces.description import contact_sheet, describe, one_of_each
    from spaces.errors import UserError
    from spaces.schemes import policy_called
    from trainers.datasets import load_splits

    found = policy_called(name)
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise UserError(f"--sheet {sheet}: a contact sheet is a PNG: let its name end in .png")
        train = load_splits(load_config(config).data).train
        images = train.images[one_of_each(train.labels, rows)]
        try:
            contact_sheet(found, images, sheet, draws=draws)
        except OSError as error:
            raise UserError(f"{sheet}: cannot be written: {error.strerror}") from None
    print("\n".join(describe(found)))
    if sheet is not None:
        print(f"contact sheet  {sheet}")


@policy.command("convert")
def convert_policy(
    name: PolicyName,
    to: Annotated[
        str, typer.Option(help="torchvision, python (Pillow), kornia, albumentations or timm.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")] = None,
) -> None:
    """Write a policy as code for another library, which then runs without Augury.

    The header of the code says how many pixels come out equal, measured on the spot. What the
    library cannot express is refused by name.
    """
    from search.run_folder import write_text
    from spaces.errors import UserError
    from spaces.exporters import convert
    from spaces.schemes import policy_called

    source = convert(policy_called(name), to)
    if out is None:
        print(source, end="")
        return
    try:
        write_text(out, source)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    print(f"{to} code in {out}")


def main() -> None:
    """The console script. Exit codes: 0 done, 1 our failure, 2 the user's mistake, 130 stopped."""
    try:
        from search.errors import ClusterError, SearchFailedError
        from spaces.errors import UserError

        try:
            app()
        except UserError as error:
            _complain(str(error))
            sys.exit(2)
        except (ClusterError, SearchFailedError) as error:
            _complain(str(error))
            sys.exit(1)
    except ImportError as error:
        message = _taken_names()
        if message is None:
            raise
        _complain(f"{message} ({error})")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(text: str) -> None:
    Console(stderr=True).print(f"augury: {text}", markup=False, highlight=False, soft_wrap=True)


def _taken_names() -> str | None:
    """A sentence about another package that brought a `search`, `trainers` or `spaces` along."""
    owners = packages_distributions()
    for name in ("spaces", "trainers", "search"):
        others = sorted(set(owners.get(name, [])) - {"augury"})
        if others:
            return (
                f"the package {others[0]!r} took the import name {name!r}: "
                f"install Augury into an environment of its own"
            )
    return None

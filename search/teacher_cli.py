"""`augury teacher`: train one to keep, or learn what one of your own is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.options import Json, Overrides, Quiet, print_json

if TYPE_CHECKING:
    from trainers.teacher_check import TeacherCheck

teacher = typer.Typer(help="Train a teacher, or check one of your own.", no_args_is_help=True)

TeacherConfig = Annotated[
    Path | None,
    typer.Argument(help="YAML file with data and teacher; without one the digits of the default."),
]


@teacher.command("train")
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .pt or .pth.")],
    config: TeacherConfig = None,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the config's teacher and write its weights, a state_dict, to a file.

    A search with the same config has the same teacher. [b]teacher.weights[/b] takes the file.
    """
    from search.config import load_config
    from spaces.errors import UserError

    settings = load_config(config, overrides or ())
    if settings.teacher.weights is not None:
        raise UserError("teacher.weights: a teacher from a file is not trained, set it to null")
    if out.suffix not in (".pt", ".pth"):
        raise UserError(f"{out}: weights are written to files that end in .pt or .pth")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")

    import torch

    from search.console import progress
    from spaces.atomic_write import atomic_write
    from trainers.datasets import load_splits
    from trainers.teacher import accuracy, cached_teacher

    splits = load_splits(settings.data)
    with progress(quiet=quiet) as listen:
        listen.stage(f"teacher {settings.teacher.network} on {splits.name}")
        model = cached_teacher(splits, settings.teacher)
    try:
        with atomic_write(out) as temporary:
            torch.save(model.state_dict(), temporary)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    found = {part: accuracy(model, splits, getattr(splits, part)) for part in _HELD_OUT}
    if as_json:
        print_json({"weights": str(out), "network": settings.teacher.network, "accuracy": found})
    else:
        for part, value in found.items():
            print(f"{part} accuracy  {value:.1%}")
        print(f"weights  {out}")


_HELD_OUT = ("validation", "test")


@teacher.command("check")
def check(
    weights: Annotated[
        Path, typer.Argument(metavar="FILE", help="Weights: .pt, .pth or .safetensors.")
    ],
    config: TeacherConfig = None,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what the teacher in a file is worth, and warn where the score will rank poorly with it.

    Accuracy and expected calibration error per part of the data, and on plain training images the
    two halves of the score: CMI and centroid divergence, in nats.
    """
    from search.config import load_config

    settings = load_config(config, overrides or ())

    from dataclasses import asdict

    from search.console import progress
    from trainers.datasets import load_splits
    from trainers.teacher import cached_teacher
    from trainers.teacher_check import check_teacher

    recipe = settings.teacher.model_copy(update={"weights": weights})
    splits = load_splits(settings.data)
    with progress(quiet=quiet) as listen:
        listen.stage(f"checking {recipe.network} of {weights} on {splits.name}")
        found = check_teacher(cached_teacher(splits, recipe), splits)
    if as_json:
        print_json({"weights": str(weights), "network": recipe.network} | asdict(found))
    else:
        print("\n".join(_lines(found)))


def _lines(found: "TeacherCheck") -> list[str]:
    lines = [f"{'':<12}{'images':>8}{'accuracy':>10}{'ECE':>8}{'cross-entropy':>15}"]
    for part in ("training", *_HELD_OUT):
        row = getattr(found, part)
        figures = f"{row.accuracy:>10.1%}{row.calibration_error:>8.3f}{row.cross_entropy:>15.4f}"
        lines.append(f"{part:<12}{row.images:>8}{figures}")
    lines.append(f"CMI {found.cmi:.4f}, D {found.centroid_divergence:.4f} on plain training images")
    warnings = [f"Warning: {warning}" for warning in found.warnings]
    return lines + (warnings or ["Nothing speaks against this teacher."])

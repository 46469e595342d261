"""`augury student`: what becomes of the students that a search trained to full length."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.options import Json, print_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search.config import SearchConfig
    from search.run_folder import RunFolder
    from trainers.datasets import ImageSplits

student = typer.Typer(help="Take the students of a search along.", no_args_is_help=True)

CHECKED = 256  # images on which ONNX and PyTorch are compared


@student.command("export")
def export(
    run: Annotated[str, typer.Argument(help="Folder or address of a finished search.")],
    to: Annotated[Path, typer.Option("--to", help="File to write: .onnx.")],
    as_json: Json = False,
) -> None:
    """Write the best policy's best student as ONNX, for students of 4 to 8 bits.

    Of its seeds the one with the best validation accuracy. Quantizers become pairs of
    QuantizeLinear and DequantizeLinear; where onnxruntime is installed, its logits on validation
    images are compared with PyTorch's.
    """
    from spaces.errors import UserError

    if to.suffix != ".onnx":
        raise UserError(f"{to}: students are exported to files that end in .onnx")
    if not to.parent.is_dir():
        raise UserError(f"{to}: there is no folder {to.parent}")

    from search.config import load_config
    from search.run_folder import RunFolder
    from spaces import load_policy
    from trainers.datasets import load_splits
    from trainers.quantization.onnx import export_onnx

    folder = RunFolder.open(run)
    config = load_config(folder.config)
    kept, state = _best(folder, load_policy(folder.best_policy).identity, config.promotion.kind)
    splits = load_splits(config.data)
    try:
        model = _rebuilt(state, config, splits)
    except RuntimeError as error:  # the code of a network of the user's own has changed since
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{folder.named(kept)}: is of another network than the config's: {reason}"
        ) from None
    images = splits.normalise(splits.validation.images[:CHECKED])
    try:
        export_onnx(model, images[:2], to)
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}") from None
    found: dict[str, Any] = {
        "student": folder.named(kept),
        "onnx": str(to),
        "normalised_by": _normalisation(splits),
    }
    found |= _compared(model, to, images)
    if as_json:
        print_json(found)
        return
    print(f"student  {folder.named(kept)}")
    print(f"onnx     {to}, for images normalised by mean {splits.mean} and deviation {splits.std}")
    if "same_class" in found:
        print(
            f"onnxruntime names the same class on {found['same_class']:.1%} of {len(images)} "
            f"validation images, logits differ by {found['largest_difference']:.2g} at most"
        )
    else:
        print("not compared: onnxruntime is not installed")


def _best(folder: "RunFolder", identity: str, kind: str) -> tuple[Path, dict[str, Any]]:
    """The student of the policy `identity` with the best validation accuracy, of those that the
    promotion of this `kind` trained: file and state."""
    import torch

    from spaces.errors import UserError

    found = {}
    for path in folder.kept_students(f"{identity}-*-{kind}.pt"):
        try:
            found[path] = torch.load(path, weights_only=True)
        except Exception:  # whatever a broken file makes torch raise
            raise UserError(f"{folder.named(path)} is not the student that it should be") from None
    if not found:
        raise UserError(f"{folder.named(folder.students)}: holds no student of the best policy")
    best = max(found, key=lambda path: found[path]["validation_accuracy"])
    return best, found[best]["student"]


def _rebuilt(state: dict[str, Any], config: "SearchConfig", splits: "ImageSplits") -> "nn.Module":
    from trainers.models import build_network
    from trainers.quantization import quantize

    network = config.student.network or config.teacher.architecture
    model = build_network(network.name, splits.num_classes, width=network.width, seed=0)
    model = quantize(model, config.student.quantization)
    model.load_state_dict(state)
    return model.eval()


def _normalisation(splits: "ImageSplits") -> dict[str, list[float]]:
    return {"mean": list(splits.mean), "std": list(splits.std)}


def _compared(model: "nn.Module", path: Path, images: "Tensor") -> dict[str, float]:
    """How far onnxruntime is from PyTorch; nothing where it is not installed."""
    import torch

    try:
        import onnxruntime
    except ImportError:
        return {}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    with torch.no_grad():
        ours = model(images)
    same = (theirs.argmax(dim=1) == ours.argmax(dim=1)).double().mean()
    return {
        "same_class": float(same),
        "largest_difference": float((theirs - ours).abs().max()),
    }

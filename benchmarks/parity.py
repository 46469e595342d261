"""How far torchvision's own PIL path is from its tensor path, which is our reference.

    python benchmarks/parity.py

Every operation of TrivialAugment at 31 strengths and both signs, on smooth noisy images of 32x32:
the share of pixels that differ, by how much on average and at most, of 255. Beside it the engine,
by the same measure. A Markdown table, then one JSON object.
"""

import json

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from spaces.kernels import Drawn
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS

SIDE = 32


def images(count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    noise = torch.randn(smooth.shape, generator=rng) * 0.02
    return ((smooth + noise).clamp(0, 1) * 255).round().byte()


def theirs(name: str) -> str:
    """shear_x -> ShearX, autocontrast -> AutoContrast."""
    if name == "autocontrast":
        return "AutoContrast"
    return "".join(part.capitalize() for part in name.split("_"))


def in_their_unit(name: str, magnitude: float) -> float:
    """torchvision shifts by pixels, and solarizes at a fraction that it rounds for PIL."""
    if name.startswith("translate"):
        return magnitude * SIDE
    if name == "posterize":
        return round(magnitude)
    return magnitude / 255 if name == "solarize" else magnitude


def measure(name: str) -> dict[str, float]:
    kind = OPERATIONS[name]
    strongest = min(kind.strongest or 0.0, 255.0)
    values = np.linspace(min(kind.neutral or 0.0, 255.0), strongest, 31)
    magnitudes = np.concatenate([values, -values]) if kind.signed else values
    batch = images(len(magnitudes))
    ours = kind.kernel(batch, Drawn(magnitudes, np.empty((len(batch), 0))))
    transform, found = v2.TrivialAugmentWide(), {"engine": 0.0, "pil": 0.0, "sum": 0.0, "most": 0.0}
    for image, magnitude, engine in zip(batch, magnitudes.tolist(), ours, strict=True):
        setting = in_their_unit(name, magnitude)
        options = {"interpolation": InterpolationMode.NEAREST, "fill": transform._fill}
        apply = transform._apply_image_or_video_transform
        tensor = apply(image, theirs(name), setting, **options)
        pil = F.pil_to_tensor(apply(F.to_pil_image(image), theirs(name), setting, **options))
        off = (pil.int() - tensor.int()).abs()
        found["engine"] += float((engine != tensor).sum())
        found["pil"] += float((off > 0).sum())
        found["sum"] += float(off.sum())
        found["most"] = max(found["most"], float(off.max()))
    pixels = batch.numel()
    return {
        "engine": found["engine"] / pixels,
        "pil": found["pil"] / pixels,
        "mean_difference": found["sum"] / max(found["pil"], 1),
        "largest_difference": found["most"],
    }


def main() -> None:
    torch.set_num_threads(1)
    table = {name: measure(name) for name in TRIVIAL_AUGMENT_OPERATIONS}
    print("| operation | engine, pixels unlike | PIL, pixels unlike | by, on average | at most |")
    print("|---|---|---|---|---|")
    for name, row in table.items():
        print(
            f"| {name} | {100 * row['engine']:.2f} % | {100 * row['pil']:.2f} % "
            f"| {row['mean_difference']:.1f} | {row['largest_difference']:.0f} |"
        )
    print(json.dumps(table))


if __name__ == "__main__":
    main()

"""The table of operations: what each is called, how strong it can be, and what carries it out.

Ranges are those of TrivialAugment's wide space (Müller and Hutter, ICCV 2021, arXiv 2103.10158),
in physical units, so that a policy means the same at every image size. Its 32 pixels of
translation are the whole side of a CIFAR image: 1.0.

To add an operation, write its kernel (kernels.py, geometry.py) and its row here.
"""

from dataclasses import dataclass

from spaces import geometry, kernels
from spaces.errors import unknown_name
from spaces.geometry import PLACES_OF_A_BOX
from spaces.kernels import Kernel


@dataclass(frozen=True)
class OperationKind:
    """One row of the table.

    A signed operation has magnitudes >= 0 and draws its direction per image; `neutral` is the
    magnitude that changes nothing and `strongest` the far end of the range. An operation without
    magnitude has no unit and both are None.
    """

    name: str
    kernel: Kernel
    unit: str | None = None
    neutral: float | None = None
    strongest: float | None = None
    signed: bool = False
    whole: bool = False  # the kernel rounds to whole units
    places: int = 0  # numbers from [0, 1) per image that the kernel needs beside the magnitude

    @property
    def has_magnitude(self) -> bool:
        return self.neutral is not None

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest magnitude in `unit`."""
        assert self.neutral is not None and self.strongest is not None
        return min(self.neutral, self.strongest), max(self.neutral, self.strongest)

    def at_strength(self, strength: float) -> float:
        """The magnitude at `strength`, from 0 (neutral) to 1 (strongest)."""
        assert self.neutral is not None and self.strongest is not None
        # Twelve digits are far finer than a pixel and keep files free of 0.30000000000000004.
        digits = 0 if self.whole else 12
        return round(self.neutral + strength * (self.strongest - self.neutral), digits)

    def strength(self, magnitude: float) -> float:
        """The inverse of `at_strength`."""
        assert self.neutral is not None and self.strongest is not None
        return (magnitude - self.neutral) / (self.strongest - self.neutral)


PIXELS = "pixels"  # the one unit that means something else at another image size
_SLOPE, _SIDE, _AREA = "slope", "fraction of the side", "fraction of the area"
_CHANGE = "relative change"

OPERATIONS: dict[str, OperationKind] = {
    kind.name: kind
    for kind in (
        OperationKind("identity", kernels.identity),
        OperationKind("shear_x", geometry.shear_x, _SLOPE, 0.0, 0.99, signed=True),
        OperationKind("shear_y", geometry.shear_y, _SLOPE, 0.0, 0.99, signed=True),
        OperationKind("translate_x", geometry.translate_x, _SIDE, 0.0, 1.0, signed=True),
        OperationKind("translate_y", geometry.translate_y, _SIDE, 0.0, 1.0, signed=True),
        OperationKind("rotate", geometry.rotate, "degrees", 0.0, 135.0, signed=True),
        OperationKind("brightness", kernels.brightness, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("color", kernels.color, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("contrast", kernels.contrast, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("sharpness", kernels.sharpness, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("posterize", kernels.posterize, "bits", 8.0, 2.0, whole=True),
        OperationKind("solarize", kernels.solarize, "threshold", 256.0, 0.0),
        OperationKind("autocontrast", kernels.autocontrast),
        OperationKind("equalize", kernels.equalize),
        OperationKind("invert", kernels.invert),
        OperationKind("grayscale", kernels.grayscale),
        OperationKind("hue", kernels.hue, "fraction of the circle", 0.0, 0.5, signed=True),
        OperationKind("blur", kernels.blur, PIXELS, 0.0, 4.0),
        OperationKind("flip", geometry.flip),
        OperationKind("crop", geometry.crop, _SIDE, 0.0, 0.5, places=2),
        OperationKind(
            "resized_crop", geometry.resized_crop, _AREA, 1.0, 0.08, places=PLACES_OF_A_BOX
        ),
        OperationKind("erase", geometry.erase, _AREA, 0.0, 1.0, places=PLACES_OF_A_BOX),
        OperationKind("cutout", geometry.cutout, _SIDE, 0.0, 1.0, places=2),
    )
}

WARPS = frozenset({"shear_x", "shear_y", "translate_x", "translate_y", "rotate"})
COVERS = frozenset({"crop", "erase", "cutout"})  # use the fill colour without interpolating

# The paper's fourteen, and what a search composes chains from.
TRIVIAL_AUGMENT_OPERATIONS: tuple[str, ...] = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


def operation_kind(name: str) -> OperationKind:
    """The row called `name`; raises UserError that lists the known names, nearest first."""
    if name not in OPERATIONS:
        raise unknown_name("operation", name, OPERATIONS)
    return OPERATIONS[name]

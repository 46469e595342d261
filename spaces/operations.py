"""The table of operations: what each is called, how strong it can be, and what carries it out.

Ranges are those of TrivialAugment's wide space (Müller and Hutter, ICCV 2021, arXiv 2103.10158),
in physical units, so that a policy means the same at every image size. Its 32 pixels of
translation are the whole side of a CIFAR image: 1.0.
"""

from dataclasses import dataclass

from spaces import kernels
from spaces.errors import unknown_name
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


_SLOPE, _SIDE, _CHANGE = "slope", "fraction of the side", "relative change"

OPERATIONS: dict[str, OperationKind] = {
    kind.name: kind
    for kind in (
        OperationKind("identity", kernels.identity),
        OperationKind("shear_x", kernels.shear_x, _SLOPE, 0.0, 0.99, signed=True),
        OperationKind("shear_y", kernels.shear_y, _SLOPE, 0.0, 0.99, signed=True),
        OperationKind("translate_x", kernels.translate_x, _SIDE, 0.0, 1.0, signed=True),
        OperationKind("translate_y", kernels.translate_y, _SIDE, 0.0, 1.0, signed=True),
        OperationKind("rotate", kernels.rotate, "degrees", 0.0, 135.0, signed=True),
        OperationKind("brightness", kernels.brightness, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("color", kernels.color, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("contrast", kernels.contrast, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("sharpness", kernels.sharpness, _CHANGE, 0.0, 0.99, signed=True),
        OperationKind("posterize", kernels.posterize, "bits", 8.0, 2.0, whole=True),
        OperationKind("solarize", kernels.solarize, "threshold", 256.0, 0.0),
        OperationKind("autocontrast", kernels.autocontrast),
        OperationKind("equalize", kernels.equalize),
        OperationKind("invert", kernels.invert),
    )
}

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

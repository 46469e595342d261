"""The named policies of the literature, each with the paper that it comes from.

Magnitudes are torchvision's, in physical units. `NAME+cutmix` and `NAME+mixup` put a mixing behind
any scheme that has none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spaces.errors import UserError, unknown_name
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS
from spaces.policy import Chain, Mixing, Operation, Policy, Range


@dataclass(frozen=True)
class Scheme:
    """A named policy, what it does in a few words, and its source."""

    policy: Policy
    summary: str
    citation: str


# Strongest magnitudes of AutoAugment and RandAugment; those of TrivialAugment are the table's own.
_MODERATE = {
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": 30.0,
    "brightness": 0.9,
    "color": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "posterize": 4.0,
    "solarize": 0.0,
}


def _levels(name: str, count: int) -> "np.ndarray":
    """The magnitudes of level 0 .. count-1 in AutoAugment's and RandAugment's space."""
    weakest = {"posterize": 8.0, "solarize": 255.0}.get(name, 0.0)
    levels = np.linspace(weakest, _MODERATE[name], count)
    return np.round(levels) if name == "posterize" else levels


def trivial_augment() -> Policy:
    """TrivialAugmentWide: one operation per image, its magnitude uniform over 31 bins."""

    def operation(name: str) -> Operation:
        kind = OPERATIONS[name]
        if not kind.has_magnitude:
            return Operation(name=name)
        low, high = kind.range
        return Operation(name=name, magnitude=Range(low=low, high=min(high, 255.0)))

    chains = tuple(Chain(operations=(operation(n),)) for n in TRIVIAL_AUGMENT_OPERATIONS)
    return Policy(name="trivial_augment", chains=chains)


def rand_augment(operations: int = 2, level: int = 9) -> Policy:
    """RandAugment(n, m): n operations per image in succession, all at level m of 31."""

    def operation(name: str) -> Operation:
        strength = float(_levels(name, 31)[level]) if name in _MODERATE else None
        return Operation(name=name, magnitude=strength)

    chains = tuple(Chain(operations=(operation(n),)) for n in TRIVIAL_AUGMENT_OPERATIONS)
    return Policy(name="rand_augment", chains=chains, draws=operations)


# One sub-policy a line: operation, probability, level of 10 (- where the operation takes none).
_CIFAR10 = """
invert .1 -, contrast .2 6
rotate .7 2, translate_x .3 9
sharpness .8 1, sharpness .9 3
shear_y .5 8, translate_y .7 9
autocontrast .5 -, equalize .9 -
shear_y .2 7, posterize .3 7
color .4 3, brightness .6 7
sharpness .3 9, brightness .7 9
equalize .6 -, equalize .5 -
contrast .6 7, sharpness .6 5
color .7 7, translate_x .5 8
equalize .3 -, autocontrast .4 -
translate_y .4 3, sharpness .2 6
brightness .9 6, color .2 8
solarize .5 2, invert 0 -
equalize .2 -, autocontrast .6 -
equalize .2 -, equalize .6 -
color .9 9, equalize .6 -
autocontrast .8 -, solarize .2 8
brightness .1 3, color .7 0
solarize .4 5, autocontrast .9 -
translate_y .9 9, translate_y .7 9
autocontrast .9 -, solarize .8 3
equalize .8 -, invert .1 -
translate_y .7 9, autocontrast .9 -
"""

_SVHN = """
shear_x .9 4, invert .2 -
shear_y .9 8, invert .7 -
equalize .6 -, solarize .6 6
invert .9 -, equalize .6 -
equalize .6 -, rotate .9 3
shear_x .9 4, autocontrast .8 -
shear_y .9 8, invert .4 -
shear_y .9 5, solarize .2 6
invert .9 -, autocontrast .8 -
equalize .6 -, rotate .9 3
shear_x .9 4, solarize .3 3
shear_y .8 8, invert .7 -
equalize .9 -, translate_y .6 6
invert .9 -, equalize .6 -
contrast .3 3, rotate .8 4
invert .8 -, translate_y 0 2
shear_y .7 6, solarize .4 8
invert .6 -, rotate .8 4
shear_y .3 7, translate_x .9 3
shear_x .1 6, invert .6 -
solarize .7 2, translate_y .6 7
shear_y .8 4, invert .8 -
shear_x .7 9, translate_y .8 3
shear_y .8 5, autocontrast .7 -
shear_x .7 2, invert .1 -
"""


def auto_augment(name: str, table: str) -> Policy:
    """AutoAugment: one of 25 pairs of operations per image."""

    def operation(text: str) -> Operation:
        kind, probability, level = text.split()
        magnitude = None if level == "-" else float(_levels(kind, 10)[int(level)])
        return Operation(name=kind, probability=float(probability), magnitude=magnitude)

    chains = tuple(
        Chain(operations=tuple(map(operation, line.split(", "))))
        for line in table.strip().splitlines()
    )
    return Policy(name=name, chains=chains)


def _mixing_alone(name: str) -> Policy:
    return Policy.model_validate({"name": name, "mixing": {"name": name}})


_BUILDERS: dict[str, tuple[Callable[[], Policy], str, str]] = {
    "none": (lambda: Policy(name="none"), "no augmentation", "the control"),
    "trivial_augment": (
        trivial_augment,
        "one of 14 operations at a random magnitude (wide)",
        "Müller and Hutter, ICCV 2021, arXiv 2103.10158",
    ),
    "rand_augment": (
        rand_augment,
        "two of 14 operations in succession at level 9 of 31",
        "Cubuk et al., NeurIPS 2020, arXiv 1909.13719",
    ),
    "auto_augment_cifar10": (
        lambda: auto_augment("auto_augment_cifar10", _CIFAR10),
        "one of 25 pairs of operations learned on CIFAR-10",
        "Cubuk et al., CVPR 2019, arXiv 1805.09501",
    ),
    "auto_augment_svhn": (
        lambda: auto_augment("auto_augment_svhn", _SVHN),
        "one of 25 pairs of operations learned on SVHN",
        "Cubuk et al., CVPR 2019, arXiv 1805.09501",
    ),
    "cutmix": (
        lambda: _mixing_alone("cutmix"),
        "a box of another image pasted in, labels by area",
        "Yun et al., ICCV 2019, arXiv 1905.04899",
    ),
    "mixup": (
        lambda: _mixing_alone("mixup"),
        "two images and their labels blended",
        "Zhang et al., ICLR 2018, arXiv 1710.09412",
    ),
}

SCHEMES: dict[str, Scheme] = {
    name: Scheme(build(), summary, citation)
    for name, (build, summary, citation) in _BUILDERS.items()
}


def scheme(name: str) -> Policy:
    """The policy called `name`, or `NAME+cutmix`, `NAME+mixup`; raises UserError on others."""
    base, plus, mixing = name.partition("+")
    if base not in SCHEMES:
        raise unknown_name("scheme", base, SCHEMES)
    policy = SCHEMES[base].policy
    if not plus:
        return policy
    if mixing not in ("cutmix", "mixup"):
        raise unknown_name("mixing", mixing, ("cutmix", "mixup"), where=f"scheme {name!r}")
    if policy.mixing is not None:
        raise UserError(f"scheme {name!r}: {base} is a mixing already, a policy has at most one")
    return policy.model_copy(
        update={"name": name, "mixing": Mixing.model_validate({"name": mixing})}
    )

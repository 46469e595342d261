"""The named policies of the literature, each with the paper that it comes from.

Magnitudes are torchvision's, in physical units and exact: its float32 bins fall a hair short of
some of them, so that TrivialAugment's middle shift at 32 pixels is 15 there and 16 here, and a
solarize threshold of RandAugment may differ by one value.

`NAME+cutmix`, `NAME+mixup` and `NAME+cutmix_pick` put a mixing behind any scheme that has none, and
`rand_augment(N,M)` is RandAugment with N operations at level M.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spaces.errors import UserError, unknown_name
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS
from spaces.policy import MIXINGS, Blend, Chain, Mixing, Operation, Policy, Range, load_policy


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


LEVELS = 31  # of RandAugment


def rand_augment(operations: int = 2, level: int = 9, name: str = "rand_augment") -> Policy:
    """RandAugment(n, m): n operations per image in succession, all at level m of 0 to 30."""

    def operation(kind: str) -> Operation:
        strength = float(_levels(kind, LEVELS)[level]) if kind in _MODERATE else None
        return Operation(name=kind, magnitude=strength)

    chains = tuple(Chain(operations=(operation(n),)) for n in TRIVIAL_AUGMENT_OPERATIONS)
    return Policy(name=name, chains=chains, draws=operations)


# The strongest magnitudes of AugMix at severity 3 of 10, torchvision's default: its levels are the
# first 3 of 10 from neutral, but from 4 bits in Posterize, to these ends.
_AUGMIX = _MODERATE | {"translate_x": 1 / 3, "translate_y": 1 / 3, "posterize": 0.0}
_AUGMIX_OPERATIONS = tuple(n for n in TRIVIAL_AUGMENT_OPERATIONS if n != "identity")


def augmix(severity: int = 3, width: int = 3, depth: int = 3, alpha: float = 1.0) -> Policy:
    """AugMix: the image blended with `width` versions, each of 1 to `depth` operations.

    `severity` is 1 to 5: beyond, torchvision's space leaves less than two bits.
    """

    def operation(name: str) -> Operation:
        if name not in _AUGMIX:
            return Operation(name=name)
        weakest = {"posterize": 4.0, "solarize": 255.0}.get(name, 0.0)
        last = weakest + (_AUGMIX[name] - weakest) * (severity - 1) / 9
        low, high = sorted((weakest, last))
        magnitude = Range(low=low, high=high, bins=severity) if severity > 1 else weakest
        return Operation(name=name, magnitude=magnitude)

    chains = tuple(Chain(operations=(operation(n),)) for n in _AUGMIX_OPERATIONS)
    return Policy(
        name="augmix",
        chains=chains,
        min_draws=1,
        draws=depth,
        blend=Blend(width=width, alpha=alpha),
        interpolation="bilinear",
    )


def _one_chain(name: str, *operations: Operation) -> Policy:
    return Policy(name=name, chains=(Chain(operations=operations),))


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

_IMAGENET = """
posterize .4 8, rotate .6 9
solarize .6 5, autocontrast .6 -
equalize .8 -, equalize .6 -
posterize .6 7, posterize .6 6
equalize .4 -, solarize .2 4
equalize .4 -, rotate .8 8
solarize .6 3, equalize .6 -
posterize .8 5, equalize 1 -
rotate .2 3, solarize .6 8
equalize .6 -, posterize .4 6
rotate .8 8, color .4 0
rotate .4 9, equalize .6 -
equalize 0 -, equalize .8 -
invert .6 -, equalize 1 -
color .6 4, contrast 1 8
rotate .8 8, color 1 2
color .8 8, solarize .8 7
sharpness .4 7, invert .6 -
shear_x .6 5, equalize 1 -
color .4 0, equalize .6 -
equalize .4 -, solarize .2 4
solarize .6 5, autocontrast .6 -
invert .6 -, equalize 1 -
color .6 4, contrast 1 8
equalize .8 -, equalize .6 -
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
    "flip_crop": (
        lambda: _one_chain(
            "flip_crop",
            Operation(name="crop", magnitude=4 / 32),
            Operation(name="flip", probability=0.5),
        ),
        "crop from an eighth of padding, flip half of the time",
        "He et al., CVPR 2016, arXiv 1512.03385",
    ),
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
    "auto_augment_imagenet": (
        lambda: auto_augment("auto_augment_imagenet", _IMAGENET),
        "one of 25 pairs of operations learned on ImageNet",
        "Cubuk et al., CVPR 2019, arXiv 1805.09501",
    ),
    "augmix": (
        augmix,
        "the image blended with three versions of one to three operations",
        "Hendrycks et al., ICLR 2020, arXiv 1912.02781",
    ),
    "random_erasing": (
        lambda: _one_chain(
            "random_erasing", Operation(name="erase", magnitude=0.33, probability=0.5)
        ),
        "a box of 2 to 33 % of the area covered, half of the time",
        "Zhong et al., AAAI 2020, arXiv 1708.04896",
    ),
    "cutout": (
        lambda: _one_chain("cutout", Operation(name="cutout", magnitude=16 / 32)),
        "a square of half the side covered",
        "DeVries and Taylor, 2017, arXiv 1708.04552",
    ),
    "cutmix": (
        lambda: _mixing_alone("cutmix"),
        "a box of another image pasted in, labels by area",
        "Yun et al., ICCV 2019, arXiv 1905.04899",
    ),
    "cutmix_pick": (
        lambda: _mixing_alone("cutmix_pick"),
        "of twice as many CutMix images those that puzzle the teacher most",
        "Wang et al., NeurIPS 2022, arXiv 2012.02909",
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


def policy_called(name: str) -> Policy:
    """The policy in the file `name` if it ends in .json or is one, else the scheme of that name."""
    path = Path(name)
    try:
        is_file = path.suffix.lower() == ".json" or path.is_file()
    except OSError:  # a name too long for a file
        is_file = False
    return load_policy(path) if is_file else scheme(name)


_RAND_AUGMENT = re.compile(r"rand_augment\(([0-9]{1,9}),\s*([0-9]{1,9})\)")


def scheme(name: str) -> Policy:
    """The policy called `name`, `rand_augment(N,M)`, or one of both `+cutmix`, `+mixup` or
    `+cutmix_pick`; raises UserError on others."""
    base, plus, mixing = name.partition("+")
    policy = _rand_augment(base) or (SCHEMES[base].policy if base in SCHEMES else None)
    if policy is None:
        raise unknown_name("scheme", base, SCHEMES)
    if not plus:
        return policy
    if mixing not in MIXINGS:
        raise unknown_name("mixing", mixing, MIXINGS, where=f"scheme {name!r}")
    if policy.mixing is not None:
        raise UserError(f"scheme {name!r}: {base} is a mixing already, a policy has at most one")
    return policy.model_copy(
        update={"name": name, "mixing": Mixing.model_validate({"name": mixing})}
    )


def _rand_augment(name: str) -> Policy | None:
    found = _RAND_AUGMENT.fullmatch(name)
    if found is None:
        return None
    operations, level = map(int, found.groups())
    if not 1 <= operations <= 8 or level >= LEVELS:
        raise UserError(f"{name}: RandAugment takes 1 to 8 operations at level 0 to {LEVELS - 1}")
    return rand_augment(operations, level, name)

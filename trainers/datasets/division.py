"""Who belongs to which part: by class, by seed."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from spaces import randomness
from spaces.errors import UserError
from trainers.datasets.config import DividedConfig, Share

# Of a part, the part of the source that it comes from and its rows there.
Division = dict[str, tuple[str, Int64[Tensor, " m"]]]


def stratified_order(labels: Int64[Tensor, " n"], seed: int, purpose: str) -> Int64[Tensor, " n"]:
    """An order of which every beginning holds all classes in nearly their own proportions.

    Within a class the order is drawn from `seed`; the j-th of the n images of a class stands at
    (j + u) / n of the way, u drawn per class so that short beginnings favour no class.
    """
    values = labels.numpy()
    draws = randomness.uniform(np.arange(len(values)), seed, purpose)
    position = np.empty(len(values))
    for label in np.unique(values):
        rows = np.flatnonzero(values == label)
        shuffled = rows[np.argsort(draws[rows], kind="stable")]
        offset = randomness.uniform(np.array([label]), seed, purpose, "offset")[0]
        position[shuffled] = (np.arange(len(rows)) + offset) / len(rows)
    return torch.from_numpy(np.argsort(position, kind="stable"))


def divided(
    labels: Mapping[str, Int64[Tensor, " n"]], classes: Sequence[str], config: DividedConfig
) -> Division:
    """The rows of train, student, validation and test, of a source with the parts of `labels`.

    A source has `train`, and `validation` and `test` or not; those that it has are taken as they
    are, the others are split off train, and what is left of it keeps its order. Raises UserError
    where a part that is split off, or train, would miss a class.
    """
    _require_known_classes(labels, classes)
    train = labels["train"]
    require_every_class("train", train, classes, "add images, or mend those that cannot be used")
    shares: dict[str, Share] = {
        part: getattr(config, f"{part}_images")
        for part in ("validation", "test")
        if part not in labels
    }
    division = {part: (part, torch.arange(len(labels[part]))) for part in labels}
    if shares:
        _require_divisible(train, classes, list(shares))
    order = stratified_order(train, config.seed, "validation")
    for part, share in shares.items():
        count = share if isinstance(share, int) else max(round(share * len(train)), 1)
        if count >= len(order):
            raise UserError(
                f"data.{part}_images: at most {max(len(order) - 1, 0)} of {len(train)} images of "
                f"train can be split off, got {share}"
            )
        division[part] = "train", order[:count]
        order = order[count:]
        require_every_class(part, train[division[part][1]], classes, f"raise data.{part}_images")
    rest = order.sort().values
    lower = " or ".join(f"data.{part}_images" for part in shares)
    require_every_class("train", train[rest], classes, f"lower {lower}" if lower else "add images")
    division["train"] = "train", rest
    division["student"] = "train", _student(train, rest, classes, config)
    return division


def _student(
    labels: Int64[Tensor, " n"],
    train: Int64[Tensor, " m"],
    classes: Sequence[str],
    config: DividedConfig,
) -> Int64[Tensor, " k"]:
    count = config.student_images
    if count is None:
        return train
    if count > len(train):
        raise UserError(f"data.student_images: at most the {len(train)} of train, got {count}")
    rows = train[stratified_order(labels[train], config.seed, "student")[:count]]
    require_every_class("student", labels[rows], classes, "raise data.student_images")
    return rows


def _require_known_classes(labels: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise UserError(f"the data has one class, {_some(classes)}, and a classifier needs two")
    for part in labels:
        if len(labels[part]) == 0:
            raise UserError(f"the {part} part of the data has no images")
    known = set(labels["train"].tolist())
    for part in ("validation", "test"):
        foreign = sorted(set(labels.get(part, labels["train"]).tolist()) - known)
        if foreign:
            names = _some([classes[label] for label in foreign])
            raise UserError(f"the {part} part of the data has classes that train lacks: {names}")


def _require_divisible(labels: Tensor, classes: Sequence[str], parts: Sequence[str]) -> None:
    single = (labels.bincount(minlength=len(classes)) == 1).nonzero().flatten().tolist()
    if single:
        names = _some([classes[label] for label in single])
        raise UserError(
            f"a class with one image cannot be split into train and {' and '.join(parts)}: {names}"
        )


def require_every_class(part: str, labels: Tensor, classes: Sequence[str], cure: str) -> None:
    """Raises UserError that names the classes which `part` lacks, and the `cure`."""
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if missing:
        names = _some([classes[label] for label in missing])
        raise UserError(f"the {part} split of {len(labels)} images misses class {names}: {cure}")


def _some(names: Sequence[str]) -> str:
    """The first five of `names`, and how many more there are."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest

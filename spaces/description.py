"""A policy for people: in words, and as pictures of what it does."""

from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from spaces.atomic_write import atomic_write
from spaces.policy import Chain, Mixing, Operation, Policy, Range

SHEET_SIDE = 96  # pixels of a picture on a contact sheet, at least


def describe(policy: Policy) -> list[str]:
    """What `policy` does, a line per step and chain."""
    size = "" if policy.image_size is None else "found at {}x{} pixels, ".format(*policy.image_size)
    lines = [f"{policy}: {size}identity {policy.identity}"]
    policy = policy.normalised()
    if policy.base.operations:
        lines.append(f"every image: {_chain(policy.base)}")
    if policy.blend:
        lines.append(
            f"every image is blended with {policy.blend.width} versions of itself "
            f"(alpha {policy.blend.alpha:g}), each made so:"
        )
    lines += _chains(policy)
    if policy.mixing:
        lines.append(_mixing(policy.mixing))
    if (policy.interpolation, policy.fill) != ("nearest", 0):
        lines.append(
            f"pixels by {policy.interpolation} interpolation, what is empty is {policy.fill}"
        )
    if len(lines) == 1:
        lines.append("does nothing")
    return lines


def _chains(policy: Policy) -> list[str]:
    if len(policy.chains) == 1:
        operations = policy.chains[0].operations
        return [f"every image{_times(policy)}: {_chain(policy.chains[0])}"] if operations else []
    lines = [f"every image one of {len(policy.chains)}{_times(policy)}:"]
    return lines + [f"  {100 * chain.weight:4.1f} %  {_chain(chain)}" for chain in policy.chains]


def _times(policy: Policy) -> str:
    if policy.draws == 1:
        return ""
    times = f"{policy.min_draws} to {policy.draws}" if policy.min_draws else str(policy.draws)
    return f", {times} times over"


def _chain(chain: Chain) -> str:
    return ", then ".join(map(_operation, chain.operations)) or "nothing"


def _operation(operation: Operation) -> str:
    magnitude, kind = operation.magnitude, operation.kind
    text = operation.name
    if isinstance(magnitude, Range):
        text += f" {magnitude.low:.3g} to {magnitude.high:.3g} {kind.unit}"
    elif magnitude is not None:
        text += f" {magnitude:.3g} {kind.unit}"
    if kind.signed and magnitude is not None:
        text += " either way"
    return text + ("" if operation.probability == 1 else f" ({100 * operation.probability:g} %)")


def _mixing(mixing: Mixing) -> str:
    keep = 100 * (mixing.keep or 1)  # what every mixing has that picks
    what = {
        "cutmix": "a box of another image is pasted in (CutMix)",
        "mixup": "two images are blended (MixUp)",
        "cutmix_pick": f"of CutMix images the {keep:g} % that puzzle the teacher most stay",
    }[mixing.name]
    share = "" if mixing.probability == 1 else f", {100 * mixing.probability:g} % of the time"
    return f"then {what}, lambda from Beta({mixing.alpha:g}) per {mixing.per}{share}"


def contact_sheet(
    policy: Policy,
    images: UInt8[Tensor, "n c h w"],
    path: Path | str,
    *,
    draws: int = 8,
    seed: int = 0,
) -> None:
    """Writes a PNG: a row per image, as it is and then `draws` times under `policy`.

    CutMixPick shows CutMix images that nobody picked, since there is no teacher.
    """
    from torchvision.transforms.v2 import functional as F
    from torchvision.utils import make_grid

    augment = policy.augmenter(1, seed)
    labels = torch.zeros(len(images), dtype=torch.int64)
    columns = [images] + [augment(images, labels, teacher=_undecided)[0] for _ in range(draws)]
    pictures = torch.stack(columns, dim=1).flatten(0, 1)
    scale = -(-SHEET_SIDE // min(images.shape[-2:]))
    pictures = pictures.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    grid = make_grid(pictures, nrow=len(columns), padding=4, pad_value=255)
    with atomic_write(path) as temporary:
        F.to_pil_image(grid).save(temporary, format="PNG")


def _undecided(images: Tensor) -> Tensor:
    return torch.zeros(len(images), 1, device=images.device)


def one_of_each(labels: Int64[Tensor, " n"], count: int) -> Int64[Tensor, " m"]:
    """Rows of the first image of each of the first `count` classes."""
    firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()[:count]]
    return torch.tensor(firsts)

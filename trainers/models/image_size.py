"""Which images a network can take: found by trying, since every network tells it otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spaces.errors import UserError
from trainers.contexts import eval_mode

LARGEST = 512  # pixels; a network that refuses them has a size of its own
USUAL = (224, 256, 384, 240, 299)  # the sizes of networks that take one size alone


def require_fitting(
    model: nn.Module, name: str, image_size: tuple[int, int], num_classes: int
) -> None:
    """Raises UserError where `model` cannot classify images of `image_size`, height and width.

    Too small is what it cannot compute, and what is smaller than its total stride: the last maps
    would see nothing but padding.
    """
    least, stride = min(image_size), total_stride(model)
    shape = _output_shape(model, image_size)
    if shape is not None and least >= stride:
        if shape != (1, num_classes):
            raise UserError(
                f"network {name!r}: must give logits of shape (N, {num_classes}), one for each "
                f"class, got (N, {', '.join(map(str, shape[1:]))})"
            )
        return
    got = f"got {image_size[0]}x{image_size[1]}"
    if _output_shape(model, (LARGEST, LARGEST)) is not None:
        smallest = _smallest(model, max(least, stride))
        raise UserError(f"network {name!r}: needs images of at least {smallest} pixels, {got}")
    sizes = [size for size in USUAL if _output_shape(model, (size, size)) is not None]
    if not sizes:
        _forward(model, image_size)  # a mistake in the network itself: its traceback says where
    raise UserError(f"network {name!r}: takes images of {sizes[0]}x{sizes[0]} pixels only, {got}")


def total_stride(model: nn.Module) -> int:
    """Pixels of the image per pixel of the smallest feature map; 1 where it cannot be told.

    The difference between two image sizes over that of the maps leaves padding out. Both forwards
    run on torch's meta device, which knows shapes and computes nothing.
    """
    with _map_heights(model) as small:
        shape = _output_shape(model, (256, 256), device="meta")
    with _map_heights(model) as large:
        _output_shape(model, (512, 512), device="meta")
    if shape is None or len(small) != len(large):
        return 1
    # Maps that do not grow with the image come after a global pooling.
    return max((256 // (b - a) for a, b in zip(small, large, strict=True) if b > a), default=1)


@contextmanager
def _map_heights(model: nn.Module) -> Iterator[list[int]]:
    """Collects the heights of what convolutions and poolings give."""
    heights: list[int] = []
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        heights.append(output.shape[-2])

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    try:
        yield heights
    finally:
        for hook in hooks:
            hook.remove()


def _smallest(model: nn.Module, least: int) -> int:
    """The smallest square image from `least` pixels on that `model` computes, by bisection."""
    if _output_shape(model, (least, least)) is not None:
        return least
    fails, works = least, LARGEST
    while works - fails > 1:
        middle = (fails + works) // 2
        if _output_shape(model, (middle, middle)) is None:
            fails = middle
        else:
            works = middle
    return works


def _output_shape(
    model: nn.Module, image_size: tuple[int, int], device: str = "cpu"
) -> tuple[int, ...] | None:
    """The shape of the logits of one image; None where the network cannot compute it."""
    try:
        return _forward(model, image_size, device)
    except UserError:
        raise
    except Exception:  # whatever a network raises that dislikes a size: assertions, shapes
        return None


@torch.no_grad()
def _forward(model: nn.Module, image_size: tuple[int, int], device: str = "cpu") -> tuple[int, ...]:
    state = [*model.named_parameters(), *model.named_buffers()]
    moved = {name: tensor.to(device) for name, tensor in state}
    with eval_mode(model):
        images = torch.zeros(1, 3, *image_size, device=device)
        logits = torch.func.functional_call(model, moved, (images,))
    if not isinstance(logits, Tensor):
        raise UserError(
            f"network {type(model).__name__}: must give logits, a tensor, "
            f"got a {type(logits).__name__}"
        )
    return tuple(logits.shape)

"""What operations do to pixel values, a batch at a time, each image at a magnitude of its own.

Every kernel takes images (N, C, H, W) uint8 and what was drawn for them, and returns new images of
that shape and type. torchvision.transforms.v2 on single uint8 tensors is the reference, to the last
pixel. Where its arithmetic is float, ours is the same float arithmetic with a factor per image; the
order of the operations below is therefore not a matter of taste.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

Images = UInt8[Tensor, "n c h w"]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """How geometric operations fill what they cannot know."""

    interpolation: InterpolationMode = InterpolationMode.NEAREST
    fill: int = 0


@dataclass(frozen=True)
class Drawn:
    """What was drawn for N images: signed magnitudes (N,) in the operation's unit, and numbers
    from [0, 1) that place boxes and crops, (N, as many as the operation asks for)."""

    magnitudes: Numbers
    places: Numbers
    resampling: Resampling = Resampling()


Kernel = Callable[[Images, Drawn], Images]


def upload(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """`values` on `device`, without making the host wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor if device.type == "cpu" else tensor.to(device)


class InOrder:
    """The images of a contiguous batch in another order, read and written where they are.

    On the host numpy copies them, in half the time that torch takes.
    """

    def __init__(self, images: Images, order: npt.NDArray[np.intp]) -> None:
        self._images, self._order = images, order
        self._host = images.numpy() if images.device.type == "cpu" else None
        self._device_order = upload(order, images.device)

    def __getitem__(self, part: slice) -> Images:
        if self._host is None:
            return self._images.index_select(0, self._device_order[part])
        return torch.from_numpy(self._host.take(self._order[part], axis=0))

    def __setitem__(self, part: slice, images: Images) -> None:
        if self._host is None:
            self._images.index_copy_(0, self._device_order[part], images)
        else:
            self._host[self._order[part]] = images.numpy()


def stream_of(device: torch.device) -> int:
    """The stream that work on `device` is queued in: what one stream makes and keeps, another may
    read before it is there."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def per_image(values: Numbers, images: Tensor) -> Float[Tensor, "n 1 1 1"]:
    """One float32 number per image, to be broadcast over its pixels."""
    return upload(values.astype(np.float32), images.device).view(-1, 1, 1, 1)


def one_by_one(
    images: Images, drawn: Drawn, kernel: Callable[[Images, float, Resampling], Images]
) -> Images:
    """torchvision's own function, called once per magnitude that was drawn."""
    values, group = np.unique(drawn.magnitudes, return_inverse=True)
    if len(values) == 1:
        return kernel(images, float(values[0]), drawn.resampling)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for index, value in enumerate(values):
        rows = upload(np.flatnonzero(group == index), images.device)
        out[rows] = kernel(images[rows], float(value), drawn.resampling)
    return out


def identity(images: Images, _: Drawn) -> Images:
    """Leaves the images as they are."""
    return images.clone()


def brightness(images: Images, drawn: Drawn) -> Images:
    """Blends with black: every value times 1 + magnitude."""
    return _to_uint8(images.float().mul_(per_image(1.0 + drawn.magnitudes, images)))


def color(images: Images, drawn: Drawn) -> Images:
    """Blends with the grey image; 1 + magnitude = 0 is grey. One channel stays as it is."""
    if images.shape[1] == 1:
        return images.clone()
    values = images.float()
    return _blend(values, _grey(values).floor_(), drawn.magnitudes)


def contrast(images: Images, drawn: Drawn) -> Images:
    """Blends with the image's mean grey."""
    if images[0].numel() % 16:
        # torch adds a multiple of one number with one rounding, but in the last few elements of a
        # row that does not fill its vectors with two; only torch itself knows which those are.
        return one_by_one(images, drawn, lambda part, m, _: F.adjust_contrast(part, 1.0 + m))
    values = images.float()
    grey = _grey(values).floor_() if images.shape[1] == 3 else values
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    # Written out, since torch multiplies two broadcast factors five times as slowly.
    return _blend(values, mean.expand_as(values).contiguous(), drawn.magnitudes)


def sharpness(images: Images, drawn: Drawn) -> Images:
    """Blends with the image smoothed by the 3x3 kernel of ones with a five in the middle, over 13.

    The outermost pixels stay as they are.
    """
    height, width = images.shape[-2:]
    if min(height, width) <= 2:
        return images.clone()
    values = images.float()
    # Sums of whole numbers, so the order does not matter. All images lie behind each other in one
    # row: sums over neighbours are then sums of shifted rows, which is several times as fast as
    # shifted planes, and what runs over an edge is wiped out by the mask.
    row, edge = values.view(-1), width + 1
    sums = row[:-2] + row[1:-1]
    sums += row[2:]
    boxes = sums[: -2 * width] + sums[width:-width]
    boxes += sums[2 * width :]
    middle = row[edge:-edge]
    boxes.add_(middle, alpha=4).mul_(1 / 13).round_()
    change = torch.empty_like(row)
    change[:edge], change[-edge:] = 0, 0
    torch.sub(boxes, middle, out=change[edge:-edge])
    interior = _interior(height, width, images.device, stream_of(images.device))
    change = change.view_as(images).mul_(interior)
    return _to_uint8(values.addcmul_(change, per_image(1.0 - (1.0 + drawn.magnitudes), images)))


def posterize(images: Images, drawn: Drawn) -> Images:
    """Keeps the highest bits of every value, their number rounded to whole bits."""
    bits = np.rint(drawn.magnitudes).astype(np.int64)
    masks = (256 - 2 ** (8 - bits)).astype(np.uint8)
    return images & upload(masks, images.device).view(-1, 1, 1, 1)


def solarize(images: Images, drawn: Drawn) -> Images:
    """Inverts every value at or above the magnitude; 256 inverts none."""
    # 255 - v is v with every bit flipped. A value reaches the threshold if the larger of both is
    # itself; torch compares whole tensors fast and broadcast ones slowly.
    thresholds = np.ceil(drawn.magnitudes)
    lowest = upload(np.minimum(thresholds, 255).astype(np.uint8), images.device).view(-1, 1, 1, 1)
    reached = torch.maximum(images, lowest).eq(images).view(torch.uint8)
    on = upload(np.where(thresholds > 255, 0, 255).astype(np.uint8), images.device)
    return reached.mul_(on.view(-1, 1, 1, 1)).bitwise_xor_(images)


def autocontrast(images: Images, _: Drawn) -> Images:
    """Stretches every channel to the full range."""
    low = images.amin(dim=(2, 3), keepdim=True).float()
    high = images.amax(dim=(2, 3), keepdim=True).float()
    flat = high == low
    scale = (high - low).mul_(1 / 255).masked_fill_(flat, 1.0)
    return _to_uint8(images.float().sub_(low.masked_fill_(flat, 0.0)).div_(scale))


def equalize(images: Images, _: Drawn) -> Images:
    """Equalises every channel's histogram, as Pillow does."""
    n, c, height, width = images.shape
    bins = torch.arange(n * c, dtype=torch.int32, device=images.device).mul_(256)
    flat = images.flatten(start_dim=2)
    at = flat.int().add_(bins.view(n, c, 1)).view(-1)  # in histogram and table alike
    histogram = _counts(at, n * c * 256).view(n, c, 256)
    brightest = histogram.gather(-1, flat.amax(-1, keepdim=True).long())
    step = (height * width - brightest).div_(255, rounding_mode="floor")
    # Where there are too few pixels for a step, every value stays, as if there were one of each.
    enough = step.clamp(max=1)
    histogram.mul_(enough).add_(1 - enough)
    step.clamp_(min=1)
    below = histogram.cumsum(-1, dtype=torch.int32).sub_(histogram).add_(step // 2)
    # Whole numbers far below 2^24, so that float division, several times as fast, floors alike.
    table = _to_uint8(below.float().div_(step))
    return table.view(-1).index_select(0, at).view_as(images)


def _counts(places: Int32[Tensor, " m"], bins: int) -> Int32[Tensor, " b"]:
    """How often each of 0..bins-1 occurs; on a GPU without bincount, for which the host waits."""
    if places.device.type == "cpu":
        return torch.bincount(places, minlength=bins).int()
    counts = torch.zeros(bins, dtype=torch.int32, device=places.device)
    return counts.scatter_add_(0, places.long(), torch.ones_like(places))


def invert(images: Images, _: Drawn) -> Images:
    """255 minus every value."""
    return images.bitwise_not()


def grayscale(images: Images, _: Drawn) -> Images:
    """Three equal channels of the image's luma."""
    return F.rgb_to_grayscale(images, num_output_channels=images.shape[1])


def hue(images: Images, drawn: Drawn) -> Images:
    """Turns every colour by a fraction of the colour circle. One channel stays as it is."""
    return one_by_one(images, drawn, lambda part, turn, _: F.adjust_hue(part, turn))


def blur(images: Images, drawn: Drawn) -> Images:
    """Gaussian blur; the kernel reaches three deviations, as far as the image allows."""
    return one_by_one(images, drawn, _blur)


def _blur(images: Images, sigma: float, _: Resampling) -> Images:
    if sigma == 0:
        return images.clone()
    size = blur_size(sigma, min(images.shape[-2:]))
    return F.gaussian_blur(images, [size, size], [sigma, sigma])


def blur_size(sigma: float, side: int) -> int:
    """Side of the Gaussian's kernel in pixels, odd; `side` bounds what the border can mirror."""
    return 2 * min(max(round(3 * sigma), 1), side - 1) + 1


def _blend(values: Float[Tensor, "n c h w"], other: Tensor, magnitudes: Numbers) -> Images:
    """(1 + magnitude) * values - magnitude * other; overwrites `values`."""
    values.mul_(per_image(1.0 + magnitudes, values))
    return _to_uint8(values.addcmul_(other, per_image(1.0 - (1.0 + magnitudes), values)))


def _grey(values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    red, green, blue = values.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _to_uint8(values: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    # The way over 16 bits is the faster one.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _interior(height: int, width: int, device: torch.device, _: int) -> Float[Tensor, "h w"]:
    mask = torch.zeros(height, width, device=device)
    mask[1:-1, 1:-1] = 1
    return mask

"""Operations that move pixels or cover them: warps, flips, crops and boxes.

A warp samples every image on a grid of its own, with the arithmetic of torchvision's affine. Where
it takes the nearest pixel of a small image, that is an index map: for every pixel of the result the
place that it comes from. A map is made once per operation and magnitude, by warping an image of the
pixels' own numbers; from then on the warp is one gather for all images of a batch.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor
from torch.nn.functional import grid_sample, pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from spaces.kernels import Drawn, Images, Kernel, Numbers, Resampling, stream_of, upload

LARGEST_MAP = 2**16 - 1  # pixels, so that 16 bits tell each of them and one beyond
# TrivialAugment has 62 maps for each of five operations: 5 MB at 64x64 pixels. At 224x224 three of
# them need 19 MB, since large translations copy rectangles instead.
MAP_BUDGET = 48 * 2**20  # bytes per process, image size and device
RECTANGLES_FROM = 96 * 96  # pixels: from here on a rectangle is copied faster than gathered

Wholes = npt.NDArray[np.int64]
# Where the pixel at (x, y, 1) of the result comes from, in pixels from the centre: a 2x3 matrix.
Matrix = tuple[float, float, float, float, float, float]
Move = Callable[[float, int, int], Matrix]  # of magnitude, height and width
Warp = tuple[Move, float]


def _shear_x(slope: float, height: int, width: int) -> Matrix:
    angle = math.radians(math.degrees(math.atan(slope)))  # torchvision takes degrees
    return _about_corner((1.0, math.tan(angle), 0.0, 0.0, 1.0, 0.0), height, width)


def _shear_y(slope: float, height: int, width: int) -> Matrix:
    angle = math.radians(math.degrees(math.atan(slope)))
    turned = math.cos(-angle) / math.cos(angle), math.sin(-angle) / math.cos(angle)
    return _about_corner((1.0, 0.0, 0.0, -turned[1], turned[0], 0.0), height, width)


def _translate_x(fraction: float, _: int, width: int) -> Matrix:
    return 1.0, 0.0, -float(int(fraction * width)), 0.0, 1.0, 0.0


def _translate_y(fraction: float, height: int, _: int) -> Matrix:
    return 1.0, 0.0, 0.0, 0.0, 1.0, -float(int(fraction * height))


def _rotate(degrees: float, _: int, __: int) -> Matrix:
    angle = math.radians(-degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    return cosine, sine, 0.0, -sine, cosine, 0.0


def _about_corner(matrix: Matrix, height: int, width: int) -> Matrix:
    """`matrix` with the top left corner as its fixed point instead of the centre."""
    a, b, _, c, d, _ = matrix
    x, y = -width * 0.5, -height * 0.5
    return a, b, a * -x + b * -y + x, c, d, c * -x + d * -y + y


def shear_x(images: Images, drawn: Drawn) -> Images:
    """Rows slide by `magnitude` pixels per row, anchored at the top left corner."""
    return warped(images, drawn, [_shear_x] * len(images))


def shear_y(images: Images, drawn: Drawn) -> Images:
    """Columns slide by `magnitude` pixels per column, anchored at the top left corner."""
    return warped(images, drawn, [_shear_y] * len(images))


def translate_x(images: Images, drawn: Drawn) -> Images:
    """Shifts by a fraction of the width, cut to whole pixels as torchvision does."""
    if _pixels_of(images) >= RECTANGLES_FROM:
        return _shifted(images, drawn, axis=-1)
    return warped(images, drawn, [_translate_x] * len(images))


def translate_y(images: Images, drawn: Drawn) -> Images:
    """Shifts by a fraction of the height, cut to whole pixels as torchvision does."""
    if _pixels_of(images) >= RECTANGLES_FROM:
        return _shifted(images, drawn, axis=-2)
    return warped(images, drawn, [_translate_y] * len(images))


def _pixels_of(images: Images) -> int:
    return images.shape[-2] * images.shape[-1]


def _shifted(images: Images, drawn: Drawn, axis: int) -> Images:
    """Copies what stays in the image; whole pixels need no interpolation."""
    side = images.shape[axis]
    out = torch.full_like(images, drawn.resampling.fill, memory_format=torch.contiguous_format)
    for row, fraction in enumerate(drawn.magnitudes.tolist()):
        shift = int(fraction * side)
        kept = side - abs(shift)
        target, source = out[row], images[row]
        target.narrow(axis, max(shift, 0), kept).copy_(source.narrow(axis, max(-shift, 0), kept))
    return out


def rotate(images: Images, drawn: Drawn) -> Images:
    """Rotates counter-clockwise about the centre."""
    return warped(images, drawn, [_rotate] * len(images))


# What each kernel does to its images' pixels: for the engine, which gives all warps to one call.
MOVES: dict[Kernel, Move] = {
    shear_x: _shear_x,
    shear_y: _shear_y,
    translate_x: _translate_x,
    translate_y: _translate_y,
    rotate: _rotate,
}


def warps_together(images: Images, resampling: Resampling) -> bool:
    """Whether one call for several kinds of warps costs less than a call for each."""
    nearest = resampling.interpolation == InterpolationMode.NEAREST
    return nearest and _pixels_of(images) < RECTANGLES_FROM


def warped(images: Images, drawn: Drawn, moves: Sequence[Move]) -> Images:
    """Moves the pixels of each image by a move of its own."""
    height, width = images.shape[-2:]
    nearest = drawn.resampling.interpolation == InterpolationMode.NEAREST
    warps = list(zip(moves, drawn.magnitudes.tolist(), strict=True))
    if not nearest or _pixels_of(images) > LARGEST_MAP:
        matrices = [move(magnitude, height, width) for move, magnitude in warps]
        values = _sampled(images.float(), matrices, drawn.resampling)
        return (values if nearest else values.round_()).to(torch.int16).to(torch.uint8)
    maps = _maps(height, width, images.device, stream_of(images.device))
    return _gathered(images, maps.of(warps), drawn.resampling.fill)


def _sampled(
    images: Float[Tensor, "n c h w"], matrices: Sequence[Matrix], resampling: Resampling
) -> Float[Tensor, "n c h w"]:
    """Each image on a grid of its own. The grid is a product of matrices, as torchvision's is: the
    same products and sums in another way end up beside other pixels."""
    n, _, height, width = images.shape
    theta = upload(np.array(matrices, dtype=np.float32), images.device).view(n, 2, 3)
    half = torch.tensor([0.5 * width, 0.5 * height]).to(images.device, non_blocking=True)
    pixels = _pixels(height, width, images.device, stream_of(images.device)).expand(n, -1, -1)
    grid = pixels.bmm(theta.transpose(1, 2) / half)
    grid = grid.view(n, height, width, 2)
    mode = resampling.interpolation.value
    if not resampling.fill:  # black is what the sampler itself puts beyond the border
        return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    images = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
    out = grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    values, known = out[:, :-1], out[:, -1:]
    if mode == "nearest":
        return torch.where(known < 0.5, float(resampling.fill), values)
    return values.sub_(resampling.fill).mul_(known).add_(resampling.fill)


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _pixels(height: int, width: int, device: torch.device, _: int) -> Float[Tensor, "1 hw 3"]:
    """(x, y, 1) of every pixel, from the centre of the image."""
    x = torch.linspace((1.0 - width) * 0.5, (width - 1.0) * 0.5, steps=width, device=device)
    y = torch.linspace((1.0 - height) * 0.5, (height - 1.0) * 0.5, steps=height, device=device)
    ones = torch.ones(height, width, device=device)
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width), ones], dim=-1)
    return grid.view(1, height * width, 3)


def _gathered(images: Images, source: Int64[Tensor, "n hw"], fill: int) -> Images:
    """The pixel at `source` for every pixel; the number of pixels stands for the fill colour."""
    flat = pad(images.flatten(start_dim=2), (0, 1), value=fill)
    places = source.unsqueeze(1).expand(-1, flat.shape[1], -1)
    return flat.gather(2, places).view_as(images)


class IndexMaps:
    """Index maps of one image size on one device, made on demand, within MAP_BUDGET bytes."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self._size, self._device = (height, width), device
        self._lock = Lock()  # loaders may run in threads
        self._capacity = max(MAP_BUDGET // (2 * height * width), 1)
        self._forget()

    def of(self, warps: Sequence[Warp]) -> Int64[Tensor, "n hw"]:
        """A map per warp: the pixel that each pixel comes from, or their number for none."""
        # Made in inference mode, the maps could not be added to outside it.
        with self._lock, torch.inference_mode(mode=False):
            return self._of(warps).view(torch.uint16).long()

    def _of(self, warps: Sequence[Warp]) -> Int16[Tensor, "n hw"]:
        rows = [*map(self._row_of.get, warps)]
        if None in rows:
            if not self._add([*dict.fromkeys(warps)]):
                return self._made(warps)
            rows = [*map(self._row_of.get, warps)]
        return self._source.index_select(0, upload(np.array(rows), self._device))

    def _add(self, warps: Sequence[Warp]) -> bool:
        """Makes the maps that are missing, in the place of all others if need be; False where there
        is no room for so many."""
        missing = [warp for warp in warps if warp not in self._row_of]
        if len(self._row_of) + len(missing) > self._capacity:
            self._forget()
            missing = [*warps]
        if len(missing) > self._capacity:
            return False
        first = len(self._row_of)
        self._source[first : first + len(missing)] = self._made(missing)
        self._row_of.update({warp: first + index for index, warp in enumerate(missing)})
        return True

    def _forget(self) -> None:
        self._row_of: dict[Warp, int] = {}
        # The system hands this memory out as it is written. Torch selects signed numbers alone on
        # every device, so what is stored is the bits of the unsigned ones.
        room = self._capacity, self._size[0] * self._size[1]
        self._source = torch.empty(room, dtype=torch.int16, device=self._device)

    def _made(self, warps: Sequence[Warp]) -> Int16[Tensor, "m hw"]:
        # Numbers from 1, so that 0 is what was filled in; float32 holds all of them exactly.
        height, width = self._size
        count = height * width
        numbers = torch.arange(1, count + 1, dtype=torch.float32, device=self._device)
        images = numbers.view(1, 1, height, width).expand(len(warps), -1, -1, -1)
        matrices = [move(magnitude, height, width) for move, magnitude in warps]
        found = _sampled(images, matrices, Resampling()).flatten(1)
        return found.sub_(1).masked_fill_(found.lt(0), count).to(torch.int32).to(torch.int16)


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _maps(height: int, width: int, device: torch.device, _: int) -> IndexMaps:
    return IndexMaps(height, width, device)


def flip(images: Images, _: Drawn) -> Images:
    """Left becomes right."""
    return images.flip(-1)


def crop(images: Images, drawn: Drawn) -> Images:
    """Pads every side by a fraction of it, then cuts the old size out at a place drawn evenly.

    The padding is rounded to whole pixels and has the fill colour.
    """
    height, width = images.shape[-2:]
    top, left = (
        _whole(drawn.places[:, axis], 2 * padding) - padding
        for axis, side in enumerate((height, width))
        for padding in [np.rint(drawn.magnitudes * side).astype(np.int64)]
    )
    rows = upload(top[:, None] + np.arange(height), images.device)
    columns = upload(left[:, None] + np.arange(width), images.device)
    inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    source = rows[:, :, None] * width + columns[:, None]
    source.masked_fill_(~(inside_y[:, :, None] & inside_x[:, None]), height * width)
    return _gathered(images, source.flatten(1), drawn.resampling.fill)


def _whole(place: Numbers, highest: Numbers | Wholes | int) -> Wholes:
    """A whole number from 0 to `highest`, both included, for a place in [0, 1)."""
    return np.floor(place * (highest + 1)).astype(np.int64)


# RandomResizedCrop and RandomErasing draw area and aspect ratio up to ten times, until they fit.
TRIES = 10
PLACES_OF_A_BOX = 2 * TRIES + 2


def _boxes(
    drawn: Drawn,
    size: tuple[int, int],
    area: tuple[Numbers, Numbers],
    ratio: tuple[float, float],
    *,
    ratio_is_height: bool,
    smallest: int,
    largest: tuple[int, int],
) -> Wholes:
    """(top, left, height, width) per image, int64 (N, 4); height -1 where no try fitted."""
    (low, high), (height, width) = area, size
    logs = math.log(ratio[0]), math.log(ratio[1])
    shares = low[:, None] + drawn.places[:, :TRIES] * (high - low)[:, None]
    ratios = np.exp(logs[0] + drawn.places[:, TRIES : 2 * TRIES] * (logs[1] - logs[0]))
    long, short = (
        np.sqrt(shares * height * width * ratios),
        np.sqrt(shares * height * width / ratios),
    )
    heights, widths = map(np.rint, (long, short) if ratio_is_height else (short, long))
    fits = (heights <= largest[0]) & (widths <= largest[1])
    fits &= (heights >= smallest) & (widths >= smallest)
    first, index = fits.argmax(axis=1), np.arange(len(fits))
    h, w = heights[index, first], widths[index, first]
    top, left = _whole(drawn.places[:, -2], height - h), _whole(drawn.places[:, -1], width - w)
    boxes = np.stack([top, left, h, w], axis=1).astype(np.int64)
    boxes[~fits.any(axis=1), 2] = -1
    return boxes


def resized_crop_boxes(drawn: Drawn, height: int, width: int) -> Wholes:
    """The boxes of torchvision's RandomResizedCrop with scale (magnitude, 1), ratio (3/4, 4/3)."""
    area = drawn.magnitudes, np.ones_like(drawn.magnitudes)
    boxes = _boxes(
        drawn,
        (height, width),
        area,
        (3 / 4, 4 / 3),
        ratio_is_height=False,
        smallest=1,
        largest=(height, width),
    )
    # torchvision falls back to the largest box in the middle whose ratio is allowed.
    aspect = width / height
    fallback_w = round(height * 4 / 3) if aspect > 4 / 3 else width
    fallback_h = round(width / (3 / 4)) if aspect < 3 / 4 else height
    middle = (height - fallback_h) // 2, (width - fallback_w) // 2
    boxes[boxes[:, 2] < 0] = (*middle, fallback_h, fallback_w)
    return boxes


def resized_crop(images: Images, drawn: Drawn) -> Images:
    """A box of at least `magnitude` of the area, ratio 3/4 to 4/3, resized to the old size."""
    height, width = images.shape[-2:]
    boxes = resized_crop_boxes(drawn, height, width).tolist()
    parts = [
        F.resized_crop(image, *box, [height, width], InterpolationMode.BILINEAR, antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    return torch.stack(parts)


SMALLEST_ERASED = 0.02  # of the area


def erase_boxes(drawn: Drawn, height: int, width: int) -> Wholes:
    """The boxes of torchvision's RandomErasing with scale (0.02, magnitude), ratio (0.3, 3.3)."""
    area = np.minimum(drawn.magnitudes, SMALLEST_ERASED), drawn.magnitudes
    return _boxes(
        drawn,
        (height, width),
        area,
        (0.3, 3.3),
        ratio_is_height=True,
        smallest=0,
        largest=(height - 1, width - 1),
    )


def erase(images: Images, drawn: Drawn) -> Images:
    """Covers a box of up to `magnitude` of the area with the fill colour."""
    top, left, height, width = erase_boxes(drawn, *images.shape[-2:]).T
    bottom = top + np.maximum(height, 0)
    return _covered(images, np.stack([top, left, bottom, left + width]), drawn)


def cutout_boxes(drawn: Drawn, height: int, width: int) -> Wholes:
    """(top, left, bottom, right), int64 (4, N), of a square of `magnitude` of the shorter side
    about any pixel, cut at the border: Cutout (DeVries and Taylor, arXiv 1708.04552)."""
    side = np.rint(drawn.magnitudes * min(height, width)).astype(np.int64)
    top, left = (
        _whole(drawn.places[:, axis], length - 1) - side // 2
        for axis, length in enumerate((height, width))
    )
    bottom, right = (top + side).clip(0, height), (left + side).clip(0, width)
    return np.stack([top.clip(0), left.clip(0), bottom, right])


def cutout(images: Images, drawn: Drawn) -> Images:
    """Covers a square of `magnitude` of the side, about any pixel, with the fill colour."""
    return _covered(images, cutout_boxes(drawn, *images.shape[-2:]), drawn)


def _covered(images: Images, edges: Wholes, drawn: Drawn) -> Images:
    inside = box_mask(upload(edges, images.device), *images.shape[-2:])
    return images.masked_fill(inside.unsqueeze(1), drawn.resampling.fill)


def box_mask(edges: Int64[Tensor, "4 n"], height: int, width: int) -> Bool[Tensor, "n h w"]:
    """Which pixels lie in a box per image; `edges` are top, left, bottom, right, the last two
    excluded."""
    top, left, bottom, right = edges.view(4, -1, 1)
    y, x = (torch.arange(side, device=edges.device) for side in (height, width))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None, :]

"""Every operation against torchvision's own tensor path, on single images, to the last pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from spaces import geometry
from spaces.errors import UserError
from spaces.geometry import (
    MOVES,
    IndexMaps,
    Warp,
    cutout_boxes,
    erase_boxes,
    resized_crop_boxes,
    rotate,
)
from spaces.kernels import Drawn, Resampling, blur_size
from spaces.operations import (
    OPERATIONS,
    TRIVIAL_AUGMENT_OPERATIONS,
    OperationKind,
    operation_kind,
)

NEAREST, BILINEAR = InterpolationMode.NEAREST, InterpolationMode.BILINEAR
TORCHVISION = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}
WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PLACED = {name for name, kind in OPERATIONS.items() if kind.places}


def reference(
    image: torch.Tensor, name: str, magnitude: float, resampling: Resampling
) -> torch.Tensor:
    """What torchvision does to one image (C, H, W) uint8."""
    side = min(image.shape[-2:])
    if name == "hue":
        return F.adjust_hue(image, magnitude)
    if name == "flip":
        return F.horizontal_flip(image)
    if name == "grayscale":
        return F.rgb_to_grayscale(image, num_output_channels=len(image))
    if name == "blur":
        size = blur_size(magnitude, side)
        return F.gaussian_blur(image, [size] * 2, [magnitude] * 2) if magnitude else image
    if name == "translate_x":
        magnitude *= image.shape[-1]
    if name == "translate_y":
        magnitude *= image.shape[-2]
    if name == "posterize":
        magnitude = round(magnitude)
    if name == "solarize":  # torchvision refuses the threshold that inverts nothing
        return F.solarize(image, magnitude) if magnitude <= 255 else image
    # torchvision's default is no fill at all, which is black
    fill = {torch.Tensor: resampling.fill or None}
    return v2.TrivialAugmentWide()._apply_image_or_video_transform(
        image, TORCHVISION[name], magnitude, interpolation=resampling.interpolation, fill=fill
    )


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, smooth images and images of little contrast, in turn."""
    rng = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    smooth = torch.nn.functional.avg_pool2d(images.float(), 3, stride=1, padding=1).byte()
    images[1::3] = smooth[1::3]
    images[2::3] = smooth[2::3] // 4 + 100
    return images


def every_magnitude(kind: OperationKind) -> np.ndarray:
    """31 strengths, both signs."""
    if not kind.has_magnitude:
        return np.zeros(3)
    values = np.linspace(kind.neutral, kind.strongest, 31)
    return np.concatenate([values, -values]) if kind.signed else values


def assert_equal_to_torchvision(
    images: torch.Tensor, name: str, magnitudes: np.ndarray, resampling: Resampling
) -> None:
    before = images.clone()
    drawn = Drawn(magnitudes, np.empty((len(images), 0)), resampling)
    out = OPERATIONS[name].kernel(images, drawn)
    assert torch.equal(images, before)
    for image, found, magnitude in zip(images, out, magnitudes.tolist(), strict=True):
        assert torch.equal(found, reference(image, name, magnitude, resampling)), magnitude


SIZES = [(8, 8), (28, 28), (32, 32), (64, 64), (96, 96), (13, 29), (41, 18)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - PLACED))
def test_every_bin_and_sign(name, size, channels):
    magnitudes = every_magnitude(OPERATIONS[name])
    if name in ("hue", "blur"):
        magnitudes = magnitudes[::5]
    assert_equal_to_torchvision(
        pictures(len(magnitudes), channels, *size), name, magnitudes, Resampling()
    )


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - PLACED))
def test_photographs(name):
    magnitudes = every_magnitude(OPERATIONS[name])[::6]
    for size in ((224, 224), (231, 190)):
        images = pictures(len(magnitudes), 3, *size)
        assert_equal_to_torchvision(images, name, magnitudes, Resampling())


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("size", [(255, 257), (256, 256)])  # the largest index map, and none
def test_warps_at_the_end_of_index_maps(name, size):
    magnitudes = every_magnitude(OPERATIONS[name])[::11]
    images = pictures(len(magnitudes), 3, *size)
    assert_equal_to_torchvision(images, name, magnitudes, Resampling(fill=77))


@pytest.mark.parametrize(
    "resampling", [Resampling(BILINEAR), Resampling(BILINEAR, 77), Resampling(NEAREST, 77)]
)
@pytest.mark.parametrize("name", WARPS)
def test_warps_with_other_interpolation_and_fill(name, resampling):
    magnitudes = every_magnitude(OPERATIONS[name])[::3]
    for size in ((32, 32), (15, 40), (150, 130)):
        images = pictures(len(magnitudes), 3, *size)
        assert_equal_to_torchvision(images, name, magnitudes, resampling)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(set(OPERATIONS) - PLACED)),
    strength=st.floats(0, 1),
    negative=st.booleans(),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from([NEAREST, BILINEAR]),
    fill=st.sampled_from([0, 128]),
    seed=st.integers(0, 1000),
)
def test_any_magnitude_at_any_size(
    name, strength, negative, size, channels, interpolation, fill, seed
):
    kind = OPERATIONS[name]
    magnitude = kind.at_strength(strength) if kind.has_magnitude else 0.0
    magnitudes = np.full(3, -magnitude if kind.signed and negative else magnitude)
    images = pictures(3, channels, *size, seed)
    assert_equal_to_torchvision(images, name, magnitudes, Resampling(interpolation, fill))


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3), (1, 7)])
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - PLACED - {"blur"}))
def test_tiny_images(name, size):
    magnitudes = every_magnitude(OPERATIONS[name])
    images = pictures(len(magnitudes), 1, *size)
    assert_equal_to_torchvision(images, name, magnitudes, Resampling())


@pytest.mark.parametrize("name", [n for n, kind in OPERATIONS.items() if kind.has_magnitude])
def test_the_neutral_magnitude_changes_nothing_and_the_strongest_does(name):
    kind = OPERATIONS[name]
    images = pictures(2, 3, 16, 16)
    places = np.full((2, kind.places), 0.4)
    for magnitude, same in ((kind.neutral, True), (kind.strongest, False)):
        out = kind.kernel(images, Drawn(np.full(2, magnitude), places))
        assert torch.equal(out, images) == same


def drawn_places(name: str, magnitude: float, count: int) -> Drawn:
    rng = np.random.default_rng(0)
    return Drawn(np.full(count, magnitude), rng.random((count, OPERATIONS[name].places)))


@pytest.mark.parametrize("fill", [0, 99])
def test_a_crop_is_torchvisions_pad_and_crop(fill):
    images = pictures(200, 3, 16, 20)
    drawn = drawn_places("crop", 0.25, 200)
    drawn = Drawn(drawn.magnitudes, drawn.places, Resampling(fill=fill))
    out = OPERATIONS["crop"].kernel(images, drawn)
    for image, place, found in zip(images, drawn.places, out, strict=True):
        top, left = int(place[0] * 9), int(place[1] * 11)  # 0 to twice the padding of 4 and 5
        padded = F.pad(image, [5, 4, 5, 4], fill=fill)
        assert torch.equal(found, F.crop(padded, top, left, 16, 20))


def test_resized_crops_are_torchvisions():
    images = pictures(40, 3, 33, 24)
    drawn = drawn_places("resized_crop", 0.2, 40)
    boxes = resized_crop_boxes(drawn, 33, 24).tolist()
    out = OPERATIONS["resized_crop"].kernel(images, drawn)
    for image, box, found in zip(images, boxes, out, strict=True):
        assert torch.equal(found, F.resized_crop(image, *box, [33, 24], antialias=True))


def assert_drawn_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Every column of both has the same distribution."""
    from scipy import stats

    for column in range(ours.shape[1]):
        values = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        tables = [np.searchsorted(values, side[:, column]) for side in (ours, theirs)]
        groups = np.array_split(np.arange(len(values)), min(len(values), 8))
        group_of = np.concatenate([[i] * len(g) for i, g in enumerate(groups)])
        counts = np.array([np.bincount(group_of[t], minlength=len(groups)) for t in tables])
        assert stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue > 1e-4


@pytest.mark.parametrize("size", [(32, 32), (40, 20)])
def test_boxes_of_resized_crops_are_drawn_as_torchvision_draws_them(size):
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(size, scale=(0.2, 1.0))
    image = torch.zeros(3, *size, dtype=torch.uint8)
    params = [theirs.make_params([image]) for _ in range(3000)]
    expected = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    assert_drawn_alike(resized_crop_boxes(drawn_places("resized_crop", 0.2, 3000), *size), expected)


@pytest.mark.parametrize("size", [(32, 32), (40, 12)])
def test_erased_boxes_are_drawn_as_torchvision_draws_them(size):
    torch.manual_seed(0)
    theirs = v2.RandomErasing(p=1)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    params = [theirs.make_params([image]) for _ in range(3000)]
    expected = np.array([[p["i"], p["j"], p["h"], p["w"]] for p in params if p["v"] is not None])
    found = erase_boxes(drawn_places("erase", 0.33, 3000), *size)
    found = found[found[:, 2] >= 0]
    assert abs(len(found) - len(expected)) < 150
    assert_drawn_alike(found, expected)


@pytest.mark.parametrize("fill", [0, 200])
def test_covered_boxes_have_the_fill_colour_and_all_else_stays(fill):
    images = pictures(50, 3, 20, 30).clamp(1, 199)
    for name, boxes_of in (("erase", erase_boxes), ("cutout", cutout_boxes)):
        drawn = drawn_places(name, 0.4, 50)
        drawn = Drawn(drawn.magnitudes, drawn.places, Resampling(fill=fill))
        out = OPERATIONS[name].kernel(images, drawn)
        boxes = boxes_of(drawn, 20, 30)
        if name == "erase":
            top, left, height, width = boxes.T
            boxes = top, left, top + height, left + width
        for image, found, *edges in zip(images, out, *boxes, strict=True):
            top, left, bottom, right = map(int, edges)
            assert (found[:, top:bottom, left:right] == fill).all()
            rest = torch.ones_like(image, dtype=torch.bool)
            rest[:, top:bottom, left:right] = False
            assert torch.equal(image[rest], found[rest])


def test_a_cutout_is_a_square_cut_at_the_border():
    top, left, bottom, right = cutout_boxes(drawn_places("cutout", 0.5, 2000), 32, 32)
    assert (bottom - top).max() == (right - left).max() == 16
    assert (bottom - top).min() == 8  # a centre on the border leaves half
    assert {int(top.min()), int(bottom.max())} == {0, 32}


def turns(degrees: np.ndarray) -> list[Warp]:
    return [(MOVES[rotate], angle) for angle in degrees.tolist()]


def test_index_maps_stay_within_their_budget(monkeypatch):
    monkeypatch.setattr(geometry, "MAP_BUDGET", 2**20)
    maps = IndexMaps(96, 96, torch.device("cpu"))
    for start in range(0, 180, 20):  # three times as many maps as fit
        angles = turns(np.arange(start, start + 20) / 10)
        assert torch.equal(maps.of(angles), maps.of(angles))
    assert maps._source.nbytes <= 2**20
    many = turns(np.arange(100) / 10)  # more than fit at once
    assert torch.equal(IndexMaps(96, 96, torch.device("cpu")).of(many)[:5], maps.of(many[:5]))


@given(
    st.sampled_from([k for k in OPERATIONS.values() if k.has_magnitude and not k.whole]),
    st.floats(0, 1),
)
def test_strength_is_the_inverse_of_at_strength(kind, strength):
    assert kind.strength(kind.at_strength(strength)) == pytest.approx(strength, abs=1e-9)
    low, high = kind.range
    assert low <= kind.at_strength(strength) <= high


def test_the_fourteen_operations_of_trivial_augment():
    theirs = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert {TORCHVISION[name] for name in TRIVIAL_AUGMENT_OPERATIONS} == set(theirs)
    for name in TRIVIAL_AUGMENT_OPERATIONS:
        assert OPERATIONS[name].signed == theirs[TORCHVISION[name]][1]


def test_an_unknown_operation_names_the_nearest_one():
    with pytest.raises(UserError, match="unknown operation 'rotat': did you mean 'rotate'"):
        operation_kind("rotat")

"""Policies in words and pictures."""

import torch
from PIL import Image

from spaces import Chain, Mixing, Operation, Policy, Range, scheme
from spaces.description import contact_sheet, describe, one_of_each
from spaces.policy import Blend


def test_a_policy_in_words():
    turn = Operation(name="rotate", magnitude=Range(low=0, high=30), probability=0.7)
    policy = Policy(
        name="mine",
        base=Chain(operations=(Operation(name="flip", probability=0.5),)),
        chains=(Chain(operations=(turn, Operation(name="equalize")), weight=3), Chain()),
        min_draws=1,
        draws=2,
        blend=Blend(width=2),
        mixing=Mixing(name="mixup", alpha=0.4, per="image", probability=0.5),
        image_size=(32, 24),
    )
    assert describe(policy) == [
        f"mine: found at 32x24 pixels, identity {policy.identity}",
        "every image: flip (50 %)",
        "every image is blended with 2 versions of itself (alpha 1), each made so:",
        "every image one of 2, 1 to 2 times over:",
        "  25.0 %  nothing",
        "  75.0 %  rotate 0 to 30 degrees either way (70 %), then equalize",
        "then two images are blended (MixUp), lambda from Beta(0.4) per image, 50 % of the time",
    ]
    assert describe(scheme("none"))[1] == "does nothing"


def test_a_contact_sheet_shows_every_image_and_its_draws(tmp_path):
    images = torch.randint(0, 256, (3, 3, 16, 20), dtype=torch.uint8)
    path = tmp_path / "sheet.png"
    contact_sheet(scheme("trivial_augment+cutmix_pick"), images, path, draws=4)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (5 * (6 * 20 + 4) + 4, 3 * (6 * 16 + 4) + 4)
        corner = sheet.crop((4, 4, 4 + 120, 4 + 96)).resize((20, 16), Image.Resampling.NEAREST)
    shown = torch.tensor(list(corner.get_flattened_data())).view(16, 20, 3).permute(2, 0, 1)
    assert torch.equal(shown, images[0].to(shown.dtype))


def test_one_image_of_each_class():
    assert one_of_each(torch.tensor([1, 0, 1, 2, 0]), 2).tolist() == [1, 0]

"""One epoch of augmented batches: every view of every image once, in an order of its own."""

import pytest
import torch

from spaces import Chain, Operation, Policy, PolicyAugment, scheme
from trainers.batches import augmented_batches, steps_per_epoch
from trainers.datasets import Labelled

COUNT = 23


@pytest.fixture
def data() -> Labelled:
    """Image i is of the grey i, and of class i."""
    grey = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Labelled(grey.expand(-1, 3, 2, 2).contiguous(), torch.arange(COUNT))


def epoch_of(data: Labelled, policy: Policy, **changes: int) -> list[tuple]:
    augment = policy.augmenter(COUNT)
    keys = {"batch_size": 10, "repeats": 3, "seed": 0, "epoch": 0} | changes
    return list(augmented_batches(data, augment, **keys))


def order(batches: list[tuple]) -> list[int]:
    return torch.cat([images[:, 0, 0, 0] for images, _, _ in batches]).tolist()


def test_every_image_comes_once_in_every_pass(data):
    found = order(epoch_of(data, scheme("none")))
    passes = [found[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(one) == list(range(COUNT)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_only_the_last_batch_is_short_and_labels_stay_with_their_images(data):
    batches = epoch_of(data, scheme("none"))
    assert [len(images) for images, _, _ in batches] == [10] * 6 + [9]
    assert len(batches) == steps_per_epoch(COUNT, 3, 10)
    for images, targets, _ in batches:
        assert torch.equal(targets.argmax(dim=1), images[:, 0, 0, 0].long())


@pytest.mark.parametrize("size", [2, 11, 22, 34, 68, 69])
def test_no_batch_is_of_one_image_and_rows_say_whose_views_they_are(data, size):
    batches = epoch_of(data, scheme("none"), batch_size=size)
    assert len(batches) == steps_per_epoch(COUNT, 3, size)
    sizes = [len(batch.rows) for batch in batches]
    assert sum(sizes) == 69
    assert min(sizes) > 1
    assert set(sizes[:-1]) <= {size}
    for batch in batches:
        assert torch.equal(batch.rows, batch.images[:, 0, 0, 0].long())


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_seeds_and_epochs_have_orders_of_their_own(data, other):
    assert order(epoch_of(data, scheme("none"))) == order(epoch_of(data, scheme("none")))
    assert order(epoch_of(data, scheme("none"))) != order(epoch_of(data, scheme("none"), **other))


def test_every_view_of_an_image_is_augmented_by_a_draw_of_its_own():
    """One image, many views: were the draws per image, all views would be inverted or none."""
    one = Labelled(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    chain = Chain(operations=(Operation(name="invert", probability=0.5),))
    augment = PolicyAugment(Policy(chains=(chain,)), num_classes=1)
    (batch,) = augmented_batches(one, augment, batch_size=400, repeats=400, seed=0, epoch=0)
    inverted = float((batch[0][:, 0, 0, 0] == 255).double().mean())
    assert inverted == pytest.approx(0.5, abs=0.1)


def test_the_size_of_a_batch_does_not_change_what_becomes_of_an_image(data):
    small, large = (epoch_of(data, scheme("trivial_augment"), batch_size=b) for b in (7, 69))
    for index in (0, 1):
        parts = [torch.cat([batch[index] for batch in batches]) for batches in (small, large)]
        assert torch.equal(*parts)


def test_the_data_set_stays_as_it_is(data):
    before = data.images.clone()
    epoch_of(data, scheme("rand_augment+cutmix"))
    assert torch.equal(data.images, before)

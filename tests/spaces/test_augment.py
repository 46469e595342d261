"""The engine: every image its own operations, the same draws for the same key."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from spaces import Chain, Operation, Policy, PolicyAugment, scheme
from spaces.augment import BLOCK, CHUNK
from spaces.draws import NO_PLACES, places
from spaces.kernels import Drawn
from spaces.operations import OPERATIONS
from spaces.schemes import SCHEMES


def batch(count: int = 12, channels: int = 3, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


def chain(*operations: Operation) -> Policy:
    return Policy(chains=(Chain(operations=operations),))


def teacher(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0, :2, :5].flatten(1).float()


@pytest.mark.parametrize("name", SCHEMES)
def test_uint8_in_uint8_out_and_soft_targets_that_sum_to_one(name):
    images, labels = batch()
    out, targets = scheme(name).augmenter(num_classes=10)(images, labels, teacher=teacher)
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(12))


def test_no_augmentation_is_no_change_of_images_in_memory_of_their_own():
    images, labels = batch()
    out, targets = scheme("none").augmenter(num_classes=10)(images, labels)
    assert torch.equal(out, images)
    assert out.data_ptr() != images.data_ptr()
    assert torch.equal(targets.argmax(dim=1), labels)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(OPERATIONS)), st.integers(1, 9), st.sampled_from([1, 3]))
def test_each_image_is_what_its_kernel_makes_of_it_alone(name, tenths, channels):
    kind = OPERATIONS[name]
    magnitude = kind.at_strength(tenths / 10) if kind.has_magnitude else None
    images, labels = batch(channels=channels)
    before = images.clone()
    out, _ = chain(Operation(name=name, magnitude=magnitude)).augmenter(10)(images, labels)
    assert torch.equal(images, before)
    signs = (1, -1) if kind.signed else (1,)
    key = (0, 0, 0, 0)  # seed, epoch, draw, position
    for row, (image, found) in enumerate(zip(images, out, strict=True)):
        placed = places(kind, np.array([row]), key) if kind.places else NO_PLACES
        alone = [
            kind.kernel(image[None], Drawn(np.array([sign * (magnitude or 0.0)]), placed))[0]
            for sign in signs
        ]
        assert any(torch.equal(found, candidate) for candidate in alone)


def test_operations_of_a_chain_follow_each_other():
    images, labels = batch()
    first, second = Operation(name="invert"), Operation(name="solarize", magnitude=100.0)
    out, _ = chain(first, second).augmenter(10)(images, labels)
    inverted = 255 - images
    assert torch.equal(out, torch.where(inverted >= 100, 255 - inverted, inverted))


def test_probability_is_the_share_of_images():
    images, labels = batch(4000, size=4)
    out, _ = chain(Operation(name="invert", probability=0.3)).augmenter(10)(images, labels)
    changed = (out != images).flatten(1).any(dim=1).double().mean().item()
    assert changed == pytest.approx(0.3, abs=0.03)


def test_both_signs_are_drawn_equally_often():
    images = torch.full((4000, 3, 2, 2), 100, dtype=torch.uint8)
    labels = torch.zeros(4000, dtype=torch.int64)
    brighter = chain(Operation(name="brightness", magnitude=0.5)).augmenter(10)
    out, _ = brighter(images, labels)
    assert set(out.unique().tolist()) == {50, 150}
    assert (out == 150).double().mean().item() == pytest.approx(0.5, abs=0.04)


def test_weights_are_shares():
    heavy, light = (
        Chain(operations=(Operation(name="solarize", magnitude=0.0),), weight=3.0),
        Chain(weight=1.0),
    )
    images, labels = batch(4000, size=4)
    out, _ = Policy(chains=(heavy, light)).augmenter(10)(images, labels)
    changed = (out != images).flatten(1).any(dim=1).double().mean().item()
    assert changed == pytest.approx(0.75, abs=0.03)


def test_draws_repeat_the_choice():
    images, labels = batch()
    twice = chain(Operation(name="invert")).model_copy(update={"draws": 2})
    assert torch.equal(twice.augmenter(10)(images, labels)[0], images)


def test_a_sample_is_augmented_alike_in_any_batch():
    images, labels = batch(64)
    ids = torch.arange(64) + 1000
    augment = scheme("rand_augment").augmenter(10, seed=3)
    whole, _ = augment(images, labels, epoch=2, sample_ids=ids)
    order = torch.randperm(64)
    shuffled, _ = augment(images[order], labels[order], epoch=2, sample_ids=ids[order])
    assert torch.equal(shuffled, whole[order])
    part, _ = augment(images[5:9], labels[5:9], epoch=2, sample_ids=ids[5:9])
    assert torch.equal(part, whole[5:9])


def test_epochs_and_seeds_differ():
    images, labels = batch(64)
    ids = torch.arange(64)
    one, other = (scheme("trivial_augment").augmenter(10, seed=s) for s in (0, 1))
    first, _ = one(images, labels, epoch=0, sample_ids=ids)
    assert not torch.equal(first, one(images, labels, epoch=1, sample_ids=ids)[0])
    assert not torch.equal(first, other(images, labels, epoch=0, sample_ids=ids)[0])


def test_calls_without_keys_differ_and_their_sequence_repeats():
    images, labels = batch(64)

    def calls(augment: PolicyAugment) -> list[torch.Tensor]:
        return [augment(images, labels)[0] for _ in range(3)]

    first = calls(scheme("trivial_augment").augmenter(10))
    second = calls(scheme("trivial_augment").augmenter(10))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_pickled_augmenter_goes_on_where_it_was():
    images, labels = batch()
    augment = scheme("auto_augment_cifar10+cutmix").augmenter(10, seed=5)
    augment(images, labels)
    again = pickle.loads(pickle.dumps(augment))
    assert torch.equal(augment(images, labels)[0], again(images, labels)[0])


class Collate:
    """Collects samples into a batch and augments it in the worker."""

    def __init__(self, augment: PolicyAugment) -> None:
        self.augment = augment

    def __call__(self, samples: list[torch.Tensor]) -> torch.Tensor:
        images = torch.stack(samples)
        return self.augment(images, torch.zeros(len(images), dtype=torch.int64))[0]


def test_workers_of_a_loader_draw_apart_and_anew_in_every_epoch():
    one = batch(1)[0][0]
    augment = scheme("trivial_augment").augmenter(10)
    loader = DataLoader([one] * 64, batch_size=32, num_workers=2, collate_fn=Collate(augment))
    epochs = [list(loader), list(loader)]
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_it_works_under_a_compiler():
    images, labels = batch()
    augment = scheme("rand_augment").augmenter(10)

    @torch.compile(backend="eager")
    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        out, _ = augment(images, labels, epoch=0, sample_ids=torch.arange(12))
        return out.float() / 255

    expected, _ = augment(images, labels, epoch=0, sample_ids=torch.arange(12))
    assert torch.equal(step(images, labels), expected.float() / 255)


def test_large_batches_in_chunks_are_the_same(monkeypatch):
    images, labels = batch(100, size=32)
    augment = scheme("auto_augment_cifar10").augmenter(10)
    whole, _ = augment(images, labels, epoch=0)
    monkeypatch.setitem(CHUNK, "cpu", 7 * images[0].numel())
    monkeypatch.setitem(BLOCK, "cpu", 3 * images[0].numel())
    assert torch.equal(augment(images, labels, epoch=0)[0], whole)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in SCHEMES if n != "augmix"])
def test_a_gpu_makes_the_same_pixels(name):
    images, labels = batch(200, size=32)
    augment = scheme(name).augmenter(10)
    host, _ = augment(images, labels, epoch=0, teacher=teacher)
    device, _ = augment(images.cuda(), labels.cuda(), epoch=0, teacher=teacher)
    assert torch.equal(device.cpu(), host)


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_memory_layout_does_not_matter(layout):
    images, labels = batch()
    other = (
        images.contiguous(memory_format=torch.channels_last)
        if layout == "channels_last"
        else images.repeat(1, 1, 1, 2)[..., ::2][..., :16]
    )
    other = other.copy_(images) if layout == "strided" else other
    expected = scheme("rand_augment+mixup").augmenter(10)(images, labels)
    found = scheme("rand_augment+mixup").augmenter(10)(other, labels)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), "images must be a uint8 tensor"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2]), r"got torch.uint8 \(3,"),
        (torch.zeros(2, 3, 8, 0, dtype=torch.uint8), torch.tensor([0, 1]), "no pixels"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), "1 or 3 channels"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), r"shape \(2,\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0.0, 1.0]), "int64"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 10]), r"lie in 0\.\.9"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([-1, 1]), r"lie in 0\.\.9"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), "1 or 3 channels"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "empty"),
    ],
)
def test_what_is_no_batch_is_refused(images, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        scheme("none").augmenter(10)(images, labels)


def test_as_many_sample_ids_as_images():
    images, labels = batch()
    sentence = r"sample_ids must be an int64 tensor of shape \(12,\), got torch.int64 \(4,\)"
    with pytest.raises(ValueError, match=sentence):
        scheme("none").augmenter(10)(images, labels, epoch=0, sample_ids=torch.arange(4))


NUMPY = """
import numpy as np, torch
from spaces import scheme
augment = scheme("none").augmenter(10)
images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
for batch in ((images.numpy(), labels), (images, labels.numpy()), (images, [0, 1])):
    try:
        augment(*batch)
    except ValueError as error:
        print(error)
"""


def test_numpy_arrays_are_named(repo_root):
    # In a process of its own, since the suite's type checker is faster than the sentence.
    done = subprocess.run(
        [sys.executable, "-c", NUMPY], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "images must be a uint8 tensor of shape (N, C, H, W), got numpy.ndarray",
        "labels must be an int64 tensor of shape (2,), got numpy.ndarray",
        "labels must be an int64 tensor of shape (2,), got list",
    ]


def test_as_many_classes_as_one():
    with pytest.raises(ValueError, match="num_classes must be 1 or more, got 0"):
        scheme("none").augmenter(0)


def test_inference_mode_leaves_nothing_behind_that_cannot_be_used_outside_it():
    images, labels = batch(size=23)
    augment = scheme("trivial_augment").augmenter(10)
    with torch.inference_mode():
        augment(images, labels, epoch=0)
    for epoch in range(5):
        out, _ = augment(images, labels, epoch=epoch)
        assert not out.is_inference()


def test_an_epoch_may_be_any_whole_number():
    images, labels = batch()
    augment = scheme("trivial_augment").augmenter(10)
    expected, _ = augment(images, labels, epoch=77_777)
    assert torch.equal(augment(images, labels, epoch=np.int64(77_777))[0], expected)


@pytest.mark.parametrize("name", ["rand_augment+cutmix", "augmix", "trivial_augment+mixup"])
def test_batches_that_are_augmented_together_are_those_of_single_calls(name):
    images = torch.randint(0, 256, (23, 3, 12, 12), dtype=torch.uint8)
    labels, ids = torch.arange(23) % 5, torch.arange(100, 123)
    augment = scheme(name).augmenter(5, seed=3)
    together = augment.batches(images, labels, batch_size=8, epoch=2, sample_ids=ids)
    apart = [
        augment(images[part], labels[part], epoch=2, sample_ids=ids[part])
        for part in (slice(0, 8), slice(8, 16), slice(16, 23))
    ]
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])

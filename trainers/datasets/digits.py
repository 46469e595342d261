"""scikit-learn's handwritten digits."""

import torch
from torch.nn.functional import interpolate

from spaces.errors import UserError
from trainers.datasets.config import DigitsConfig
from trainers.datasets.division import require_every_class, stratified_order
from trainers.datasets.splits import ImageSplits, Labelled


def digits(config: DigitsConfig) -> ImageSplits:
    """1,797 images of 8x8 by 13 writers (Alpaydin and Kaynak, UCI 1998), upsampled, three equal
    channels.

    The file is in the order of its writers, so a cut through it splits by writer: the first images
    train; the others, by people whom the teacher never saw, are validation and test.
    """
    from sklearn.datasets import load_digits  # a second that only this data set costs

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float().unsqueeze(1) * (255 / 16)
    size = (config.image_size, config.image_size)
    grey = interpolate(grey, size=size, mode="bilinear", antialias=False)
    images = grey.round().to(torch.uint8).repeat(1, 3, 1, 1)
    everything = Labelled(images, torch.from_numpy(raw.target).to(torch.int64))
    held_out = len(images) - config.train_images
    if config.validation_images >= held_out:
        raise UserError(
            f"data.validation_images: digits has {len(images)} images, {config.train_images} train "
            f"and at least one must test, so at most {max(held_out - 1, 0)} can validate, "
            f"got {config.validation_images}"
        )
    train = everything.take(torch.arange(config.train_images))
    others = everything.take(torch.arange(config.train_images, len(images)))
    return _splits(train, others, config)


def _splits(train: Labelled, others: Labelled, config: DigitsConfig) -> ImageSplits:
    """Cuts validation and test out of `others` and the student's part out of `train`."""
    if config.student_images > len(train.labels):
        raise UserError(
            f"data.student_images: at most data.train_images = {len(train.labels)}, "
            f"got {config.student_images}"
        )
    order = stratified_order(others.labels, config.seed, "validation")
    validation = others.take(order[: config.validation_images])
    test = others.take(order[config.validation_images :])
    student = train.take(
        stratified_order(train.labels, config.seed, "student")[: config.student_images]
    )
    sizes = {"train": train, "student": student, "validation": validation, "test": test}
    for part, images in sizes.items():
        cure = {"test": "lower data.validation_images"}.get(part, f"raise data.{part}_images")
        require_every_class(part, images.labels, [str(digit) for digit in range(10)], cure)
    pixels = train.images.float() / 255
    return ImageSplits(
        name="digits",
        num_classes=10,
        train=train,
        student=student,
        validation=validation,
        test=test,
        # Sums in float32, with which the golden learning curve was made.
        mean=tuple(pixels.mean(dim=(0, 2, 3)).tolist()),
        std=tuple(pixels.std(dim=(0, 2, 3)).tolist()),
    )

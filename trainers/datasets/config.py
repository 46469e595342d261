"""Which data set, how large its images are and how many go into which part."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from spaces.frozen import Frozen
from spaces.policy import Chain, Operation, Range

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Base = Annotated[
    Chain, Field(description="operations that belong to the data set, under every policy")
]
ImageSize = Annotated[int, Field(ge=8, le=512, description="side of the images, pixels")]
FilePath = Annotated[Path, Field(strict=False)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
TestShare = Annotated[
    Share,
    Field(description="images, or fraction of train, split off train where there is no test part"),
]
BadImages = Annotated[
    float, Field(ge=0, lt=1, description="fraction of a part that may be undecodable")
]


class Statistics(Frozen):
    """Mean and deviation per channel, in units of the full range 0..1."""

    mean: Annotated[tuple[float, float, float], Field(strict=False)]
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]


# What torchvision's weights were trained with.
IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Normalisation = Annotated[
    Literal["data", "imagenet"] | Statistics,
    Field(description="by the training images' own statistics, ImageNet's, or these"),
]

FLIP = Operation(name="flip", probability=0.5)
# He et al., CVPR 2016, section 4.2: 4 pixels of padding on each side of 32, and a flip.
CROP_AND_FLIP = Chain(operations=(Operation(name="crop", magnitude=4 / 32), FLIP))
# Torchvision's RandomResizedCrop and ColorJitter(0.2, 0.2, 0.2, 0.1), here in a fixed order.
RESIZED_CROP_AND_JITTER = Chain(
    operations=(
        Operation(name="resized_crop", magnitude=Range(low=0.08, high=1.0)),
        FLIP,
        Operation(name="brightness", magnitude=Range(low=0.0, high=0.2)),
        Operation(name="contrast", magnitude=Range(low=0.0, high=0.2)),
        Operation(name="color", magnitude=Range(low=0.0, high=0.2)),
        Operation(name="hue", magnitude=Range(low=0.0, high=0.1)),
    )
)


class DigitsConfig(Frozen):
    """scikit-learn's handwritten digits, which need no file."""

    name: Literal["digits"] = "digits"
    image_size: Annotated[int, Field(ge=8, le=64, description="side of the images, pixels")] = 16
    train_images: Annotated[int, Field(ge=10, description="the teacher learns from these")] = 900
    student_images: Annotated[
        int, Field(ge=1, description="class-balanced part of them that the student is distilled on")
    ] = 80
    validation_images: Annotated[int, Field(ge=1, description="promotion decides by these")] = 300
    normalisation: Normalisation = "data"
    base: Base = Chain()
    seed: Seed = 0


class DividedConfig(Frozen):
    """What data sets share whose parts are divided by class and seed."""

    student_images: Annotated[
        int | None,
        Field(ge=1, description="class-balanced part of train for the student; null is all of it"),
    ] = None
    validation_images: Annotated[
        Share,
        Field(description="images, or fraction of train; promotion decides by them"),
    ] = 0.1
    memory_gib: Annotated[
        float, Field(ge=0, description="parts that are larger together are mapped from the cache")
    ] = 4.0
    normalisation: Normalisation = "data"
    seed: Seed = 0


class CifarConfig(DividedConfig):
    """Krizhevsky 2009: 50,000 images for train and validation, 10,000 for test, of 32x32."""

    path: Annotated[
        FilePath | None,
        Field(description="an official archive or what is in it; null is the cache's download"),
    ] = None
    download: Annotated[bool, Field(description="fetch the archive where it is missing")] = False
    base: Base = CROP_AND_FLIP


class Cifar10Config(CifarConfig):
    """CIFAR-10, from python pickles or the binary version, packed or unpacked."""

    name: Literal["cifar10"] = "cifar10"


class Cifar100Config(CifarConfig):
    """CIFAR-100 with its fine labels, from python pickles or the binary version."""

    name: Literal["cifar100"] = "cifar100"


class TinyImageNetConfig(DividedConfig):
    """Tiny-ImageNet: 200 classes of 500 images. Its own test part has no labels, so that `val` is
    the test part, as in the literature, and validation is split off train."""

    name: Literal["tiny_imagenet"] = "tiny_imagenet"
    path: FilePath
    image_size: ImageSize = 64
    bad_images: BadImages = 0.01
    base: Base = RESIZED_CROP_AND_JITTER


class FolderConfig(DividedConfig):
    """Image files in a folder per class, below `path` or below its train, val and test."""

    name: Literal["folder"] = "folder"
    path: FilePath
    image_size: ImageSize = 64
    test_images: TestShare = 0.1
    bad_images: BadImages = 0.01
    base: Base = Chain()


class ParquetConfig(DividedConfig):
    """A column of encoded images and one of labels; a file, or a folder of train-*.parquet,
    validation-*.parquet and test-*.parquet."""

    name: Literal["parquet"] = "parquet"
    path: FilePath
    image_column: str = "image"
    label_column: str = "label"
    image_size: ImageSize = 64
    test_images: TestShare = 0.1
    bad_images: BadImages = 0.01
    base: Base = Chain()


def _digits_unless_named(value: Any) -> Any:
    return {"name": "digits"} | value if isinstance(value, dict) else value


AnyData = (
    DigitsConfig
    | Cifar10Config
    | Cifar100Config
    | TinyImageNetConfig
    | FolderConfig
    | ParquetConfig
)
DataConfig = Annotated[AnyData, Field(discriminator="name"), BeforeValidator(_digits_unless_named)]
EncodedConfig = TinyImageNetConfig | FolderConfig | ParquetConfig

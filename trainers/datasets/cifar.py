"""CIFAR-10 and CIFAR-100 from their official archives: python pickles or the binary version.

The formats are those of https://www.cs.toronto.edu/~kriz/cifar.html. Archives are read in memory
and never unpacked, so that no member can leave its folder, and a pickle may name only what an
array of bytes is made of.
"""

import pickle
import tarfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from trainers.cache_folder import made_folder
from trainers.datasets.config import Cifar10Config, CifarConfig
from trainers.datasets.splits import Labelled

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
LARGEST_FILE = 2**29  # bytes; the largest of the true ones has 155 MB


class _Layout(NamedTuple):
    """What the files of a data set are called, and what stands before the pixels of an image."""

    classes: int
    parts: dict[str, tuple[str, ...]]
    folders: tuple[str, str]  # of the pickles and of the binary version
    label_key: bytes  # in the pickles
    label_bytes: int  # in the binary version; the last is the label


_CIFAR10 = _Layout(
    classes=10,
    parts={"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    label_key=b"labels",
    label_bytes=1,
)
_CIFAR100 = _Layout(
    classes=100,
    parts={"train": ("train",), "test": ("test",)},
    folders=("cifar-100-python", "cifar-100-binary"),
    label_key=b"fine_labels",
    label_bytes=2,
)


def cifar(config: CifarConfig) -> tuple[list[str], dict[str, Labelled]]:
    """The names of the classes, which are numbers, and the parts train and test.

    Raises UserError that names the file where one is missing, truncated or not what it should be.
    """
    layout = _CIFAR10 if isinstance(config, Cifar10Config) else _CIFAR100
    path = _located(config)
    files = _packed(path, layout) if path.is_file() else _unpacked(path, layout)
    parts = {}
    for part, names in layout.parts.items():
        batches = []
        for name in names:
            suffix = ".bin" if f"{name}.bin" in files else ""
            if name + suffix not in files:
                raise UserError(
                    f"{path}: has no {name} or {name}.bin, is this CIFAR-{layout.classes}?"
                )
            read = _binary if suffix else _pickled
            batches.append(read(files[name + suffix], layout, f"{path}: {name}{suffix}"))
        images = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([labels for _, labels in batches])
        parts[part] = Labelled(torch.from_numpy(images), torch.from_numpy(labels))
    return [str(label) for label in range(layout.classes)], parts


def _located(config: CifarConfig) -> Path:
    path = config.path and config.path.expanduser()
    if path is not None and path.exists():
        return path

    from torchvision.datasets import CIFAR10, CIFAR100  # half a second that a file does not cost
    from torchvision.datasets.utils import download_url

    official = CIFAR10 if isinstance(config, Cifar10Config) else CIFAR100
    if path is None:
        path = made_folder("downloads", "downloads") / official.filename
    if not path.exists() and config.download:
        try:
            with atomic_write(path) as part:  # a kill leaves no half of an archive
                download_url(official.url, part.parent, part.name, official.tgz_md5)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{official.url}: cannot be downloaded: {error}") from None
    if not path.exists():
        raise UserError(f"data.path: {path} is not there; set it, or data.download to true")
    return path


def _packed(path: Path, layout: _Layout) -> dict[str, bytes]:
    """The files of a tar archive that are needed, by their last names."""
    wanted = _wanted(layout)
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or name not in wanted:
                    continue
                if member.size > LARGEST_FILE:
                    raise UserError(f"{path}: {name} is larger than any file of CIFAR")
                content = archive.extractfile(member)
                assert content is not None
                found[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: is no whole archive: {error}") from None
    return found


def _unpacked(path: Path, layout: _Layout) -> dict[str, bytes]:
    """The files in `path`, or in the folder of an archive that was unpacked there."""
    for folder in (path, *(path / name for name in layout.folders)):
        names = [name for name in _wanted(layout) if (folder / name).is_file()]
        if names:
            return {name: (folder / name).read_bytes() for name in names}
    return {}


def _wanted(layout: _Layout) -> set[str]:
    names = {name for part in layout.parts.values() for name in part}
    return names | {f"{name}.bin" for name in names}


def _binary(content: bytes, layout: _Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + PIXELS
    if not content or len(content) % record:
        raise UserError(f"{where}: {len(content)} bytes are no whole images of {record} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _checked(rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1], layout, where)


def _pickled(content: bytes, layout: _Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[layout.label_key])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception:  # whatever broken bytes make pickle and numpy raise
        raise UserError(f"{where}: is no whole batch of CIFAR") from None
    return _checked(pixels, labels, layout, where)


def _checked(
    pixels: Any, labels: np.ndarray, layout: _Layout, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of rows of pixels, plane by plane."""
    whole = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and labels.dtype.kind in "iu"
        and pixels.shape == (*labels.shape, PIXELS)
    )
    if not whole:
        raise UserError(f"{where}: is no whole batch of CIFAR")
    if len(labels) and not 0 <= labels.min() <= labels.max() < layout.classes:
        raise UserError(f"{where}: has labels that are not from 0 to {layout.classes - 1}")
    return pixels.reshape(-1, *SHAPE), labels.astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Dictionaries, lists, numbers, texts and numpy arrays; nothing that a file could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _MAKES_ARRAYS:
            _refuse(module, name)
        return _MAKES_ARRAYS[module, name]


def _refuse(module: str, name: str) -> NoReturn:
    raise UserError(f"is refused, since it would call {module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2, by `_codecs.encode`, with this one codec."""
    if encoding != "latin1":
        _refuse("_codecs", f"encode to {encoding}")
    return text.encode("latin1")


def _array_makers() -> dict[tuple[str, str], Any]:
    from numpy._core.multiarray import _reconstruct

    makers: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("core", "_core"):  # before numpy 2 and since
        makers[f"numpy.{core}.multiarray", "_reconstruct"] = _reconstruct
    return makers


_MAKES_ARRAYS = _array_makers()

"""Image files in folders: a folder per class, and the layout of Tiny-ImageNet."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from spaces.errors import UserError, by_nearness, unknown_name
from trainers.datasets.config import FolderConfig, TinyImageNetConfig
from trainers.datasets.encoded import Encoded, Source, stamp

_ENDINGS = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"]
)
# What the parts may be called below the root.
_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}


class _File(NamedTuple):
    name: str  # below the root
    label: int


class ImageFiles:
    """Images that are files below `root`."""

    def __init__(self, root: Path, files: list[_File]) -> None:
        self._root = root
        self.names = [file.name for file in files]
        self.labels = [file.label for file in files]

    @cached_property
    def stamp(self) -> str:
        return stamp(((name, self._root / name) for name in self.names), self.labels)

    def read(self, start: int, stop: int) -> list[bytes]:
        return [_bytes(self._root / name) for name in self.names[start:stop]]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def image_folder(config: FolderConfig) -> Source:
    """The tree `path`/class/*, or `path`/train/class/* with val and test beside it.

    Classes are the folders of train in the order of their names, as in torchvision's ImageFolder.
    Raises UserError for a missing path, a folder without images and classes that train lacks.
    """
    root = _existing(config.path)
    roots = {
        part: folder
        for part, names in _FOLDERS.items()
        for folder in [next((root / n for n in names if (root / n).is_dir()), None)]
        if folder
    }
    if "train" not in roots or _is_a_class(roots["train"]):
        roots = {"train": root}
    classes = [folder.name for folder in _class_folders(roots["train"])]
    parts: dict[str, Encoded] = {
        part: ImageFiles(root, list(_in_classes(root, folder, classes, part)))
        for part, folder in roots.items()
    }
    return Source(classes, parts)


def _in_classes(root: Path, folder: Path, classes: list[str], part: str) -> Iterator[_File]:
    found = _class_folders(folder)
    foreign = [f.name for f in found if f.name not in classes]
    if foreign:
        raise UserError(
            f"{folder}: the {part} part has classes that train lacks: {', '.join(foreign[:5])}"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    for class_folder in found:
        for path in sorted(_images(class_folder)):
            yield _File(path.relative_to(root).as_posix(), label_of[class_folder.name])


def _is_a_class(folder: Path) -> bool:
    """Whether `folder`, called train, holds the pictures of trains and not a folder per class."""
    beside = {path.name for path in _folders(folder.parent)}
    return not _folders(folder) and not beside <= {n for names in _FOLDERS.values() for n in names}


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` that hold images at any depth."""
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [path for path in inside if any(True for _ in _images(path))]


def _class_folders(folder: Path) -> list[Path]:
    found = _folders(folder)
    if not found:
        raise UserError(f"{folder}: has no folder with images, one per class is needed")
    return found


def _images(folder: Path) -> Iterator[Path]:
    """Files below `folder` whose ending is one of an image."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in _ENDINGS and not path.name.startswith(".") and path.is_file():
            yield path


def tiny_imagenet(config: TinyImageNetConfig) -> Source:
    """train/<wnid>/images/*.JPEG as train and val/images, labelled by val/val_annotations.txt, as
    test; a val that was sorted into val/<wnid> is known, too. Raises UserError for a missing path,
    line or class."""
    root = _existing(config.path)
    annotated = (root / "val" / "images").is_dir()
    for needed in ("train", "val", *(["val/val_annotations.txt"] if annotated else [])):
        if not (root / needed).exists():
            raise UserError(f"{root}: has no {needed}, is this Tiny-ImageNet?")
    classes = [folder.name for folder in _class_folders(root / "train")]
    train = _in_classes(root, root / "train", classes, "train")
    test = (
        _annotated(root, classes) if annotated else _in_classes(root, root / "val", classes, "test")
    )
    parts: dict[str, Encoded] = {
        "train": ImageFiles(root, list(train)),
        "test": ImageFiles(root, list(test)),
    }
    return Source(classes, parts)


def _annotated(root: Path, classes: list[str]) -> Iterator[_File]:
    """Lines of a file, its wnid and a box that is not needed, with tabs or spaces between."""
    path = root / "val" / "val_annotations.txt"
    label_of = {name: label for label, name in enumerate(classes)}
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, wnid = [*line.split(), ""][:2]
        where = f"{path}, line {number}"
        if not wnid or "/" in name or not (root / "val" / "images" / name).is_file():
            raise UserError(f"{where}: should name a file of val/images and its class")
        if wnid not in label_of:
            raise unknown_name("class", wnid, by_nearness(wnid, classes)[:10], where)
        yield _File(f"val/images/{name}", label_of[wnid])


def _existing(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_dir():
        raise UserError(f"data.path: {path} is no folder")
    return path

"""CIFAR in the true formats of its archives, and what is refused in them."""

import hashlib
import io
import pickle
import tarfile
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from spaces import Chain, Operation, UserError
from trainers.datasets import load_splits
from trainers.datasets.config import Cifar10Config, Cifar100Config

SMALL = {"validation_images": 40, "student_images": 20}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def batch(seed: int, classes: int, count: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, [n % classes for n in range(count)]


def write_cifar10(folder: Path, binary: bool) -> Path:
    folder = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels, labels = batch(seed, 10, 20)
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"batch_label": b"x", b"labels": labels, b"data": pixels, b"filenames": []}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(b"is not read")
    return folder


def write_cifar100(folder: Path, binary: bool) -> Path:
    folder = folder / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir(parents=True)
    for seed, name in enumerate(["train", "test"]):
        pixels, labels = batch(seed, 100, 300)
        coarse = [label // 5 for label in labels]
        if binary:
            rows = np.concatenate([np.array([coarse, labels], np.uint8).T, pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"fine_labels": labels, b"coarse_labels": coarse, b"data": pixels}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def packed(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def test_both_formats_packed_and_unpacked_are_the_same_data(tmp_path):
    pickles, binary = (write_cifar10(tmp_path, binary) for binary in (False, True))
    paths = [pickles, binary, packed(pickles), packed(binary), tmp_path]
    hashes = {load_splits(Cifar10Config(path=path, **SMALL)).content_hash for path in paths}
    assert len(hashes) == 1


def test_sizes_planes_and_labels_are_those_of_the_files(tmp_path):
    splits = load_splits(Cifar10Config(path=write_cifar10(tmp_path, binary=True), **SMALL))
    parts = (splits.train, splits.student, splits.validation, splits.test)
    assert [len(part.labels) for part in parts] == [60, 20, 40, 20]
    assert (splits.name, splits.num_classes, splits.image_size) == ("cifar10", 10, (32, 32))
    pixels, labels = batch(5, 10, 20)
    assert splits.test.images.numpy().tobytes() == pixels.tobytes()
    assert splits.test.labels.tolist() == labels
    assert splits.student.labels.bincount().tolist() == [2] * 10
    assert splits.validation.labels.bincount().tolist() == [4] * 10


def test_cifar100_has_its_fine_labels_in_both_formats(tmp_path):
    folders = [write_cifar100(tmp_path, binary) for binary in (False, True)]
    few = {"validation_images": 1 / 3}
    found = [load_splits(Cifar100Config(path=folder, **few)) for folder in folders]
    assert found[0].content_hash == found[1].content_hash
    assert found[0].num_classes == 100
    assert found[0].test.labels.tolist() == batch(1, 100, 300)[1]
    assert [len(found[0].train.labels), len(found[0].validation.labels)] == [200, 100]


def test_without_a_number_the_student_sees_all_of_train_without_a_copy(tmp_path):
    config = Cifar10Config(path=write_cifar10(tmp_path, binary=True), validation_images=0.3)
    splits = load_splits(config)
    assert splits.student.images.data_ptr() == splits.train.images.data_ptr()
    assert len(splits.validation.labels) == 30


def test_statistics_are_those_of_float_arithmetic(tmp_path):
    splits = load_splits(Cifar10Config(path=write_cifar10(tmp_path, binary=True), **SMALL))
    pixels = splits.train.images.double() / 255
    assert splits.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)
    assert splits.std == pytest.approx(pixels.std(dim=(0, 2, 3)).tolist(), rel=1e-12)


def test_the_base_chain_is_the_papers():
    crop, flip = Operation(name="crop", magnitude=0.125), Operation(name="flip", probability=0.5)
    assert Cifar10Config().base == Cifar100Config().base == Chain(operations=(crop, flip))


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.path,)


def test_a_pickle_runs_nothing(tmp_path):
    folder = write_cifar10(tmp_path, binary=False)
    (folder / "data_batch_2").write_bytes(
        pickle.dumps({b"labels": [], b"data": Trap(tmp_path / "x")})
    )
    with pytest.raises(UserError, match=r"data_batch_2: is refused, since it would call pathlib"):
        load_splits(Cifar10Config(path=folder, **SMALL))
    assert not (tmp_path / "x").exists()


def test_a_member_of_an_archive_stays_in_it(tmp_path):
    folder = write_cifar10(tmp_path / "a", binary=True)
    path = packed(folder)
    escaping = tmp_path / "escaping.tar.gz"
    with tarfile.open(path) as source, tarfile.open(escaping, "w:gz") as target:
        for member in source.getmembers():
            content = source.extractfile(member) if member.isfile() else None
            if member.isfile():
                member.name = f"../../{member.name}"
            target.addfile(member, content)
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        target.addfile(link, io.BytesIO())
    before = sorted(tmp_path.rglob("*"))
    found = load_splits(Cifar10Config(path=escaping, **SMALL))
    assert found.content_hash == load_splits(Cifar10Config(path=path, **SMALL)).content_hash
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("data_batch_3", b"", "data_batch_3: is no whole batch"),
        ("data_batch_3", b"\x80\x02}", "data_batch_3: is no whole batch"),
        ("data_batch_3", pickle.dumps([1]), "data_batch_3: is no whole batch"),
        (
            "test_batch",
            pickle.dumps({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}, protocol=2),
            "test_batch: has labels that are not from 0 to 9",
        ),
        (
            "test_batch",
            pickle.dumps({b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)}, protocol=2),
            "test_batch: is no whole batch",
        ),
        ("data_batch_1.bin", bytes(3072), "data_batch_1.bin: 3072 bytes are no whole images"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, sentence):
    folder = write_cifar10(tmp_path, binary=name.endswith(".bin"))
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_splits(Cifar10Config(path=folder, **SMALL))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data.path: .*nowhere is not there; set it, or data.down"):
        load_splits(Cifar10Config(path=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz is not there"):
        load_splits(Cifar10Config())
    folder = write_cifar100(tmp_path, binary=False)
    with pytest.raises(UserError, match=r"has no data_batch_1 .*is this CIFAR-10"):
        load_splits(Cifar10Config(path=folder))


def test_a_cut_archive_is_named(tmp_path):
    path = packed(write_cifar10(tmp_path, binary=True))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"tar.gz: is no whole archive"):
        load_splits(Cifar10Config(path=path, **SMALL))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_download_is_whole_or_not_there(tmp_path, cache, monkeypatch):
    path = packed(write_cifar10(tmp_path, binary=False))
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
        with pytest.raises(UserError, match=r"tar.gz: cannot be downloaded: .*corrupted"):
            load_splits(Cifar10Config(download=True, **SMALL))
        assert not [*(cache / "downloads").iterdir()]
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
        downloaded = load_splits(Cifar10Config(download=True, **SMALL))
        server.shutdown()
    assert downloaded.content_hash == load_splits(Cifar10Config(path=path, **SMALL)).content_hash


def test_beyond_the_budget_parts_are_mapped_and_the_same(tmp_path, cache):
    config = Cifar10Config(path=write_cifar10(tmp_path, binary=True), **SMALL)
    in_memory = load_splits(config)
    mapped = load_splits(config.model_copy(update={"memory_gib": 1e-6}))
    assert in_memory.folder is None
    assert mapped.folder is not None
    assert mapped.folder.parent == cache / "datasets"
    assert mapped.content_hash == in_memory.content_hash
    assert torch.equal(mapped.student.images, in_memory.student.images)
    assert (mapped.mean, mapped.std) == (in_memory.mean, in_memory.std)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation_images": 100}, "validation_images: at most 99 of 100 images"),
        ({"validation_images": 3}, "validation split of 3 images misses class .*: raise data.val"),
        ({"validation_images": 97}, "train split of 3 images misses class .*: lower data.val"),
        ({"student_images": 9}, "student split of 9 images misses class .*: raise data.student"),
        ({"student_images": 91}, "student_images: at most the 90 of train, got 91"),
    ],
)
def test_parts_that_cannot_be_are_refused(tmp_path, changes, sentence):
    config = Cifar10Config(
        path=write_cifar10(tmp_path, binary=True), **{"validation_images": 10} | changes
    )
    with pytest.raises(UserError, match=sentence):
        load_splits(config)

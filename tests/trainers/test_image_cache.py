"""The cache of decoded images: made once, resumed after a kill, mapped by every process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spaces import UserError
from trainers.datasets import ImageSplits, load_splits
from trainers.datasets.cache import CHUNK
from trainers.datasets.config import FolderConfig

COUNT = 8 * CHUNK


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Files of two classes, as many as several chunks."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for n in range(COUNT):
        path = root / str(n % 2) / f"{n:05}.bmp"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def config(root) -> FolderConfig:
    return FolderConfig(path=root, image_size=64, memory_gib=0, student_images=200)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def in_another_process(config: FolderConfig, code: str) -> subprocess.Popen[str]:
    start = (
        "import torch; torch.set_num_threads(1)\n"
        "from trainers.datasets import load_splits, ImageSplits\n"
        "from trainers.datasets.config import FolderConfig\n"
        f"config = FolderConfig.model_validate_json({config.model_dump_json()!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_is_resumed_where_it_was(root, config, cache, monkeypatch, tmp_path):
    killed = in_another_process(config, "load_splits(config)")
    while not (journals := list(cache.glob("datasets/*.unfinished/journal.jsonl"))) or (
        journals[0].read_text().count("\n") < 2
    ):
        assert killed.poll() is None, "it should not have ended"
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (unfinished,) = cache.glob("datasets/*.unfinished")  # it was killed midway
    before = (unfinished / "journal.jsonl").read_text()
    with (unfinished / "journal.jsonl").open("a") as journal:
        journal.write('{"rows": 25')  # a line that the kill cut
    # A file of the first chunk is broken behind its back: who decoded it again would say so.
    first = root / "0" / "00000.bmp"
    content, status = first.read_bytes(), first.stat()
    first.write_bytes(bytes(len(content)))
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    resumed = load_splits(config)
    first.write_bytes(content)
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert resumed.notes == ()
    (journal,) = cache.glob("datasets/*/journal.jsonl")
    assert journal.read_text().startswith(before)
    assert journal.read_text().count("\n") == COUNT // CHUNK
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "another"))
    assert load_splits(config).content_hash == resumed.content_hash


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> tuple[FolderConfig, Path]:
    """A small cache and its folder, for tests that do not break it."""
    cache = tmp_path_factory.mktemp("cache")
    config = FolderConfig(path=root, image_size=8, memory_gib=0, student_images=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUGURY_CACHE", str(cache))
        load_splits(config)
    return config, cache


def test_mapped_parts_are_those_in_memory(made, monkeypatch):
    config, cache = made
    monkeypatch.setenv("AUGURY_CACHE", str(cache))
    mapped, in_memory = (
        load_splits(config),
        load_splits(config.model_copy(update={"memory_gib": 1})),
    )
    assert in_memory.folder is None
    assert mapped.content_hash == in_memory.content_hash
    assert (mapped.mean, mapped.std) == (in_memory.mean, in_memory.std)
    assert torch.equal(mapped.train.images, in_memory.train.images)


def test_another_division_decodes_nothing_again(made, monkeypatch):
    config, cache = made
    monkeypatch.setenv("AUGURY_CACHE", str(cache))
    decoded = {path: path.stat().st_mtime_ns for path in cache.glob("datasets/*/journal.jsonl")}
    first, other = load_splits(config), load_splits(config.model_copy(update={"seed": 1}))
    assert other.content_hash != first.content_hash
    assert {p: p.stat().st_mtime_ns for p in cache.glob("datasets/*/journal.jsonl")} == decoded


def test_processes_get_the_folder_and_not_the_pixels(made, monkeypatch):
    config, cache = made
    monkeypatch.setenv("AUGURY_CACHE", str(cache))
    splits = load_splits(config)
    arrays = splits.to_arrays()
    assert arrays == {"folder": str(splits.folder)}
    code = (
        f"splits = ImageSplits.from_arrays({arrays!r})\n"
        "files = {line.split()[-1] for line in open('/proc/self/maps')}\n"
        "print(splits.content_hash, int(splits.train.images.long().sum()))\n"
        f"print({str(splits.folder / 'train.npy')!r} in files)\n"
    )
    output, _ = in_another_process(config, code).communicate()
    total = int(splits.train.images.long().sum())
    assert output.split() == [splits.content_hash, str(total), "True"]


def test_a_part_that_is_taken_whole_is_no_second_copy(root, cache):
    tree = cache / "tree"
    for part in ("train", "val", "test"):
        for label in ("0", "1"):
            (tree / part / label).mkdir(parents=True)
            for path in sorted((root / label).iterdir())[:4]:
                (tree / part / label / path.name).write_bytes(path.read_bytes())
    splits = load_splits(FolderConfig(path=tree, image_size=8, memory_gib=0))
    assert splits.folder is not None
    names = {path.stat().st_ino for path in cache.glob("datasets/*/images.npy")}
    assert {
        (splits.folder / f"{p}.npy").stat().st_ino for p in ("train", "student", "validation")
    } <= names


def test_two_processes_at_once_make_one_cache(config, cache):
    small = config.model_copy(update={"image_size": 8})
    processes = [
        in_another_process(small, "print(load_splits(config).content_hash)") for _ in range(2)
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second != ""
    assert len(list(cache.glob("datasets/*/journal.jsonl"))) == 1
    assert not list(cache.glob("datasets/*.unfinished"))


def test_a_changed_file_is_another_cache(root, made, monkeypatch):
    config, cache = made
    monkeypatch.setenv("AUGURY_CACHE", str(cache))
    before = len(list(cache.glob("datasets/*/journal.jsonl")))
    path = root / "1" / "00001.bmp"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    load_splits(config)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(list(cache.glob("datasets/*/journal.jsonl"))) == before + 1


@pytest.fixture
def few(root, cache) -> FolderConfig:
    """Some of the files, and a cache that a test may break."""
    for path in sorted(root.glob("*/*.bmp"))[:: COUNT // 40]:
        (cache / "few" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (cache / "few" / path.parent.name / path.name).write_bytes(path.read_bytes())
    return FolderConfig(path=cache / "few", image_size=8)


def test_changed_bytes_and_cut_files_are_found(few, cache):
    load_splits(few)
    (images,) = cache.glob("datasets/*/images.npy")
    content = images.read_bytes()
    images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged: delete it"):
        load_splits(few)
    images.write_bytes(content[:-50])
    with pytest.raises(UserError, match="not the images that it should be: delete it"):
        load_splits(few)


def test_mapped_files_that_are_gone_or_cut_are_named(few):
    splits = load_splits(few.model_copy(update={"memory_gib": 0}))
    assert splits.folder is not None
    path = splits.folder / "validation.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="not the data that it should be: delete it"):
        ImageSplits.mapped(splits.folder)
    with pytest.raises(UserError, match="not on this machine: set AUGURY_CACHE"):
        ImageSplits.from_arrays({"folder": str(splits.folder / "elsewhere")})


def test_a_cache_that_cannot_be_made_is_named(few, cache, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(cache / "few" / "0" / "00000.bmp"))
    with pytest.raises(UserError, match="decoded images cannot be kept here"):
        load_splits(few)

"""The cache of decoded images: made once, resumed after a kill, mapped by every process."""

import multiprocessing
import os
import resource
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spaces import UserError
from trainers.datasets import ImageSplits, load_splits
from trainers.datasets.cache import CHUNK
from trainers.datasets.config import FolderConfig

COUNT = 5 * CHUNK


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


def loading(config: FolderConfig, cache: Path) -> BaseProcess:
    """A process that loads the data; only the first one imports torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainers.datasets"])
    code = (
        f"import os; os.environ['AUGURY_CACHE'] = {str(cache)!r}\n"
        "from trainers.datasets import load_splits\n"
        "from trainers.datasets.config import FolderConfig\n"
        f"load_splits(FolderConfig.model_validate_json({config.model_dump_json()!r}))\n"
    )
    process = context.Process(target=exec, args=(code, {}))
    process.start()
    return process


def test_a_killed_process_is_resumed_where_it_was(root, config, cache, monkeypatch, tmp_path):
    killed = loading(config, cache)
    while not (journals := list(cache.glob("datasets/*.unfinished/journal.jsonl"))) or (
        journals[0].read_text().count("\n") < 2
    ):
        assert killed.exitcode is None, "it should not have ended"
        time.sleep(0.002)
    killed.kill()
    killed.join()
    (unfinished,) = cache.glob("datasets/*.unfinished")  # it was killed midway
    before = (unfinished / "journal.jsonl").read_text()
    with (unfinished / "journal.jsonl").open("a") as journal:
        journal.write('{"rows": 25')  # a line that the kill cut
    (unfinished / ".images.npy.1234.tmp").touch()
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
    assert sorted(path.name for path in journal.parent.iterdir()) == ["images.npy", journal.name]
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
    assert arrays == {"folder": str(splits.folder), "mean": splits.mean, "std": splits.std}
    again = ImageSplits.from_arrays(arrays)
    assert torch.equal(again.train.images, splits.train.images)
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= again.train.images.data_ptr() < last:
            assert line.endswith(str(again.folder / "train.npy"))


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
    both = [loading(small, cache) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    made = {path: path.stat().st_mtime_ns for path in cache.glob("datasets/*/*")}
    assert len([path for path in made if path.name == "journal.jsonl"]) == 1
    assert not list(cache.glob("datasets/*.unfinished"))
    load_splits(small)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("datasets/*/*")} == made


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


@pytest.mark.parametrize("memory_gib", [0, 1], ids=["mapped", "in memory"])
def test_one_changed_byte_anywhere_is_found(few, cache, memory_gib):
    (few.path / "0" / "00000.bmp").write_bytes(b"")  # so that something is left out
    config = few.model_copy(update={"memory_gib": memory_gib, "bad_images": 0.1})
    splits = load_splits(config)
    folder = splits.folder or next(cache.glob("datasets/*/journal.jsonl")).parent
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        places = [10, *rng.integers(len(content), size=4)]
        broken = [content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :] for n in places]
        refused = 0
        for wrong in [*broken, content[:-50], b""]:
            path.write_bytes(wrong)
            try:
                found = load_splits(config)
            except UserError:
                refused += 1
            else:  # a last digit that is rounded, the place of an image that was left out
                assert found.content_hash == splits.content_hash
                assert (found.mean, found.std) == (splits.mean, splits.std)
        assert refused > 3
        path.write_bytes(content)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="delete it"):
        load_splits(config)


def test_images_that_changed_before_they_are_divided_are_found(few, cache):
    load_splits(few)
    (images,) = cache.glob("datasets/*/images.npy")
    content = images.read_bytes()
    images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged: delete it"):
        load_splits(few.model_copy(update={"memory_gib": 0}))


def test_data_that_another_machine_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match="not on this machine: set AUGURY_CACHE"):
        ImageSplits.from_arrays({"folder": str(tmp_path / "elsewhere")})


def test_what_a_kill_leaves_is_used_or_removed(few, cache):
    config = few.model_copy(update={"memory_gib": 0})
    whole = load_splits(config)
    assert whole.folder is not None
    unfinished = whole.folder.rename(whole.folder.with_suffix(".unfinished"))
    (unfinished / "splits.json").unlink()
    abandoned, recent = (cache / "datasets" / f"{name}.unfinished" for name in ("old", "new"))
    for path, days in ((abandoned, 8), (recent, 1)):
        path.mkdir()
        os.utime(path, (time.time() - 86400 * days,) * 2)
    assert load_splits(config).content_hash == whole.content_hash
    assert [*cache.glob("datasets/*.unfinished")] == [recent]


def test_a_full_disk_is_told_in_a_sentence(few, monkeypatch):
    """A limit on the size of files is what this process can give itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match="unfinished: cannot be written: File too large"):
            load_splits(few)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_cache_that_cannot_be_made_is_named(few, cache, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(cache / "few" / "0" / "00000.bmp"))
    with pytest.raises(UserError, match="decoded images cannot be kept here"):
        load_splits(few)

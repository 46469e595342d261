"""Files appear whole or not at all, also for those who are reading and writing at that moment."""

import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spaces.atomic_write import atomic_write


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_a_failure_in_mid_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the ne")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_as_readable_as_any_other(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    with atomic_write(tmp_path / "new" / "result") as temporary:
        temporary.write_text("all of it")
    path = tmp_path / "new" / "result"
    assert path.read_text() == "all of it"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_who_has_the_old_file_open_reads_the_old_file_to_its_end(tmp_path):
    path = tmp_path / "result"
    write(path, "old" * 1000)
    with path.open() as reader:
        assert reader.read(3) == "old"
        write(path, "new" * 2000)
        assert reader.read() == "old" * 999
    assert path.read_text() == "new" * 2000


def test_readers_and_several_writers_see_nothing_but_whole_files(tmp_path):
    path = tmp_path / "result"
    contents = [letter * 200_000 for letter in "abc"]
    write(path, contents[0])
    writers = [
        threading.Thread(target=lambda text=text: [write(path, text) for _ in range(15)])
        for text in contents
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    for writer in writers:
        writer.join()
    assert seen <= set(contents)
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_in_the_middle_of_a_large_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "result"
    write(path, "old")
    code = (
        "import sys; from spaces.atomic_write import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary, temporary.open('w') as file:\n"
        "    while True:\n"
        "        file.write('new' * 100_000); file.flush(); print('more', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        for _ in range(3):
            assert writer.stdout.readline() == "more\n"
        writer.kill()
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name.startswith(".result.")
    assert left.suffix == ".tmp"
    write(path, "newer")  # what the dead writer left is in nobody's way
    assert path.read_text() == "newer"

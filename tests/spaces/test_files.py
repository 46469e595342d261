"""Errors that name the nearest right thing, and files that appear whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from spaces.atomic_write import atomic_write
from spaces.errors import by_nearness, unknown_name


def test_the_nearest_name_comes_first():
    assert by_nearness("rotat", ["solarize", "rotate", "shear_x"])[0] == "rotate"
    error = unknown_name("operation", "rotat", ["solarize", "rotate"], where="policy.json")
    assert str(error) == (
        "unknown operation 'rotat' in policy.json: did you mean 'rotate'? (also known: solarize)"
    )


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


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "result"
    path.write_text("old" * 1000)
    code = (
        "import sys, time; from spaces.atomic_write import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('new'); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert path.read_text() == "old" * 1000
    with atomic_write(path) as temporary:  # what the dead writer left is in nobody's way
        temporary.write_text("newer")
    assert path.read_text() == "newer"
    assert time.time() - path.stat().st_mtime < 60

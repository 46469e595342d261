"""Drivers and workers killed at random moments: nothing is lost, nothing done twice."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from search.config import load_config
from search.ledger import opened
from search.progress import Silence
from search.run import run_search
from search.run_folder import RunFolder
from search.table import read_parquet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
OF_THE_KILLS = {"seconds", "images_per_second", "attempts"}
KILLS = 10
CONFIG = load_config(
    overrides=[
        "data.student_images=40",
        "teacher={width: 4, epochs: 4}",
        "student.recipe.repeats=2",
        "student.recipe.batch_size=8",
        "search.trials=20",
        "search.warm_start=[none, cutmix, mixup]",
        "search.probe_epochs=3",
        "search.random_trials=6",
        "promotion={top: 2, epochs: 4, seeds: 2}",
        "cluster.concurrent_trials=1",
    ]
)


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    table = read_parquet(folder.policies).to_pylist()
    return [{k: v for k, v in row.items() if k not in OF_THE_KILLS} for row in table]


def workers_that_train() -> list[int]:
    """Process ids of the actors of the cluster of these tests: grandchildren of this process."""
    parents, actors = {}, []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                parents[int(path.name)] = int(path.joinpath("stat").read_text().split()[-49])
                command = path.joinpath("cmdline").read_bytes()
                # Without its agents a node gives itself up, and this process with it.
                if command.startswith(b"ray::") and b"Agent" not in command:
                    actors.append(int(path.name))
    return [pid for pid in actors if parents.get(parents.get(pid, 0)) == os.getpid()]


def disturb(command: list[str], folder: Path, chance: random.Random, kills: int) -> list[str]:
    """Lets a sitting write a few lines of the ledger, kills its workers or itself, and so on up to
    `kills` times or to its end; says whom."""
    ledger, victims = folder / "run" / "trials.jsonl", []
    start, lines = (ledger.stat().st_size if ledger.exists() else 0), chance.randint(2, 9)
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(victims) < kills:
            time.sleep(0.01)
            if not ledger.exists() or ledger.read_bytes()[start:].count(b"\n") < lines:
                continue
            time.sleep(chance.uniform(0, 0.5))
            victims.append(chance.choice(["driver", "driver", "worker"]))
            if victims[-1] == "driver":
                process.kill()
                break
            for worker in workers_that_train():
                os.kill(worker, signal.SIGKILL)
            start, lines = ledger.stat().st_size, chance.randint(2, 9)
    return victims


def test_a_search_that_is_killed_again_and_again_is_the_undisturbed_one(cluster, tmp_path):
    undisturbed = run_search(CONFIG, RunFolder(tmp_path / "undisturbed"), Silence())
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    augury, chance = str(Path(sys.executable).parent / "augury"), random.Random(0)
    first = ["search", "config.yaml", "--run", "run", "--set", f"cluster.address={cluster}"]
    victims: list[str] = []
    folder = RunFolder(tmp_path / "run")
    while not folder.verdict.exists():
        words = ["resume", "run"] if folder.marker.exists() else first
        victims += disturb([augury, *words], tmp_path, chance, KILLS - len(victims))
    assert len(victims) == KILLS, victims
    assert rows(folder) == rows(undisturbed.folder)
    assert folder.best_policy.read_text() == undisturbed.folder.best_policy.read_text()
    with opened(folder.ledger) as ledger:
        ended = Counter(trial.id for event, trial in ledger.history if event == "ended")
        assert set(ended.values()) == {1}
        assert len(ledger.of("probe")) == 20

"""Drivers and workers killed at random moments, a node lost: nothing is lost or done twice."""

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
import ray
from ray.cluster_utils import Cluster

from search.cluster import require_storage
from search.config import SearchConfig, load_config
from search.ledger import Trial, opened
from search.progress import Silence
from search.results import FINISHED
from search.run import run_search
from search.run_folder import RunFolder
from search.stages import SearchResult
from search.table import read_parquet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
OF_THE_CLOCK = {"seconds", "images_per_second", "attempts"}
KILLS = 10


def small(*overrides: str) -> SearchConfig:
    return load_config(
        overrides=[
            "data.student_images=40",
            "teacher={width: 4, epochs: 4}",
            "student.recipe.repeats=2",
            "student.recipe.batch_size=8",
            "search.warm_start=[none, cutmix, mixup]",
            "search.probe_epochs=3",
            "search.random_trials=6",
            "promotion={top: 2, epochs: 4, seeds: 2}",
            *overrides,
        ]
    )


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    table = read_parquet(folder.policies).to_pylist()
    return [{k: v for k, v in row.items() if k not in OF_THE_CLOCK} for row in table]


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
    config = small("search.trials=20", "cluster.concurrent_trials=1")
    undisturbed = run_search(config, RunFolder(tmp_path / "undisturbed"), Silence())
    (tmp_path / "config.yaml").write_text(config.to_yaml())
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


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A head without CPUs, and two nodes of one each."""
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    lost = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, lost
    ray.shutdown()
    cluster.shutdown()


def test_the_trials_of_a_node_that_is_lost_go_on_elsewhere(nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    cluster, (lost, _) = nodes
    ended: list[str] = []

    class Watch(Silence):
        def trial_ended(self, row: Any) -> None:
            ended.append(row.trial_id)
            if len(ended) == 3:
                cluster.remove_node(lost)
                cluster.add_node(num_cpus=1)

    require_storage(tmp_path, students=2, bytes_each=1)  # both nodes reach it
    config = small("search.trials=8", f"cluster.address={cluster.address}")
    result: SearchResult = run_search(config, RunFolder(tmp_path / "run"), Watch())
    assert [row.status for row in result.rows] == [FINISHED] * 8
    assert len(set(ended)) == len(ended)
    with opened(result.folder.ledger) as ledger:
        trials: list[Trial] = list(ledger.trials.values())
    assert {trial.status for trial in trials} == {FINISHED}

"""Clusters of several nodes: one is lost in mid-search, one cannot reach the run."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from object_store import CREDENTIALS, served
from ray.cluster_utils import Cluster

from search.cluster import require_storage
from search.config import load_config
from search.ledger import Trial, opened
from search.progress import Silence
from search.results import FINISHED
from search.run import run_search
from search.run_folder import RunFolder
from search.stages import SearchResult
from search.storage import Store
from spaces import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A head without CPUs, and two nodes of one each."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    lost = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, lost
    ray.shutdown()
    cluster.shutdown()


def may_mount() -> bool:
    return sys.platform == "linux" and not subprocess.call(["unshare", "--mount", "true"])


@pytest.fixture
def blind(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a cluster, and a folder for which its second node has a file system of its
    own, as a machine elsewhere has."""
    if not may_mount():
        pytest.skip("file systems cannot be mounted here")
    runs = tmp_path / "runs"
    runs.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    start = f"{Path(sys.executable).parent / 'ray'} start --address {cluster.address} --num-cpus 1"
    apart = f"mount -t tmpfs none {runs} && exec {start} --block"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", apart], stdout=subprocess.DEVNULL
    ) as node:
        while sum(found["Alive"] for found in ray.nodes()) < 2:
            assert node.poll() is None
            time.sleep(0.1)
        yield cluster.address, runs
        ray.shutdown()
        node.terminate()  # who ends its raylet, too
    cluster.shutdown()


def test_a_run_that_a_node_cannot_reach_is_refused_before_its_first_trial(blind, monkeypatch):
    address, runs = blind
    monkeypatch.setenv("AUGURY_CACHE", str(runs.parent / "cache"))
    config = load_config(
        overrides=[
            "data.student_images=40",
            "teacher={width: 4, epochs: 1}",
            f"cluster.address={address}",
        ]
    )
    folder = RunFolder(runs / "run")
    with pytest.raises(UserError) as caught:
        run_search(config, folder, Silence())
    assert str(caught.value).startswith(f"{folder.path}: the node ")
    assert str(caught.value).endswith(
        "by --run FOLDER that they share, or --run s3://BUCKET/NAME or gs://BUCKET/NAME with "
        "credentials on every node"
    )
    assert folder.ledger.read_text() == ""


@pytest.mark.parametrize("at", ["folder", "address"])
def test_the_trials_of_a_node_that_is_lost_go_on_elsewhere(nodes, tmp_path, monkeypatch, at):
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
    config = load_config(
        overrides=[
            "data.student_images=40",
            "teacher={width: 4, epochs: 4}",
            "student.recipe={repeats: 2, batch_size: 8}",
            "search={trials: 8, probe_epochs: 3, random_trials: 6}",
            "promotion={top: 2, epochs: 4, seeds: 2}",
            f"cluster.address={cluster.address}",
        ]
    )
    with served() as bucket:
        folder = RunFolder.at(bucket.address("run") if at == "address" else tmp_path / "run")
        result: SearchResult = run_search(config, folder, Watch())
        assert bool(bucket) == (at == "address")
    assert [row.status for row in result.rows] == [FINISHED] * 8
    assert len(set(ended)) == len(ended)
    with opened(result.folder.ledger) as ledger:
        trials: list[Trial] = list(ledger.trials.values())
    assert {trial.status for trial in trials} == {FINISHED}


def test_a_node_that_cannot_reach_the_run_is_named_before_the_first_trial(nodes):
    cluster, _ = nodes
    with served() as bucket:
        store = Store(bucket.address("run"))
        require_storage(store, students=2, bytes_each=1)
        wrong = {"AWS_SECRET_ACCESS_KEY": "another"}
        lacking = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", env_vars=wrong)
        sentence = r"s3://bucket/run: the node 127.* cannot read and write it \(.*put the run where"
        with pytest.raises(UserError, match=sentence):
            require_storage(store, students=2, bytes_each=1)
        cluster.remove_node(lacking)
        assert not [name for name in store.listing() if not name.endswith("/")]

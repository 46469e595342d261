"""A node of a cluster is lost in mid-search: its trials go on elsewhere."""

from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from search.cluster import require_storage
from search.config import load_config
from search.ledger import Trial, opened
from search.progress import Silence
from search.results import FINISHED
from search.run import run_search
from search.run_folder import RunFolder
from search.stages import SearchResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
    result: SearchResult = run_search(config, RunFolder(tmp_path / "run"), Watch())
    assert [row.status for row in result.rows] == [FINISHED] * 8
    assert len(set(ended)) == len(ended)
    with opened(result.folder.ledger) as ledger:
        trials: list[Trial] = list(ledger.trials.values())
    assert {trial.status for trial in trials} == {FINISHED}

"""A real search on a real Ray cluster, on real digits, small enough for a minute."""

import html
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from search.cluster import connected, lacking, require_storage
from search.config import ClusterConfig, SearchConfig, load_config
from search.errors import SearchFailedError
from search.progress import Silence
from search.results import FAILED, FINISHED, STOPPED
from search.run import run_search
from search.run_folder import RunFolder
from search.stages import SearchResult
from spaces import UserError, load_policy, scheme
from trainers.student import FIGURES

pytestmark = pytest.mark.usefixtures("cluster")
TINY = load_config(
    overrides=[
        "data.student_images=40",
        "teacher={width: 4, epochs: 4}",
        "student.recipe.repeats=2",
        "student.recipe.batch_size=8",
        "search.trials=10",
        "search.probe_epochs=2",
        "search.random_trials=8",
        "promotion={top: 2, epochs: 2, seeds: 2}",
    ]
)


def changed(*overrides: str, base: SearchConfig = TINY) -> SearchConfig:
    content = base.model_dump(mode="json")
    for override in overrides:
        key, _, value = override.partition("=")
        section, name = key.split(".")
        content[section][name] = json.loads(value)
    return SearchConfig.model_validate(content)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run_search(TINY, RunFolder(tmp_path_factory.mktemp("runs") / "first"), Silence())


def test_one_ranked_row_per_trial_asked_for(result):
    table = pq.read_table(result.folder.policies)
    assert table.num_rows == 10
    assert table.column("rank").to_pylist() == list(range(1, 11))
    assert table.column("status").to_pylist() == [FINISHED] * 10
    objective = table.column("objective").to_pylist()
    assert objective == sorted(objective)
    assert objective == table.column("score").to_pylist()
    assert len(set(table.column("trial_id").to_pylist())) == 10
    assert len(set(table.column("policy_identity").to_pylist())) == 10
    for name in FIGURES:
        assert all(math.isfinite(value) for value in table.column(name).to_pylist()), name


def test_the_report_is_there_with_pictures(result):
    page = result.folder.report.read_text()
    assert html.escape(result.verdict.sentence) in page
    assert "data:image/png;base64," in page
    assert {"history.svg", "curves.png", "curves.csv"} <= {
        path.name for path in result.folder.figures.iterdir()
    }


def test_the_schemes_were_asked_first(result):
    names = {row.policy.name for row in result.rows}
    assert set(TINY.search.warm_start) <= names


def test_the_file_says_what_made_it(result):
    metadata = pq.read_table(result.folder.policies).schema.metadata
    found = {
        key.decode().removeprefix("augury."): value.decode() for key, value in metadata.items()
    }
    assert found["schema_version"] == "2"
    assert found["seed"] == "0"
    assert found["objective"] == "score"
    assert len(found["data_hash"]) == len(found["teacher_hash"]) == 16
    assert {"augury", "torch", "ray", "optuna", "python"} <= set(json.loads(found["versions"]))
    assert found["config"] == result.folder.config.read_text()
    assert json.loads(found["verdict"])["sentence"] == result.verdict.sentence


def test_the_folder_holds_config_policy_verdict_and_tunes_own_results(result):
    folder = RunFolder.open(result.folder.path)
    assert load_config(folder.config) == TINY
    best = load_policy(folder.best_policy)
    assert best.identity == result.verdict.winner.policy.identity
    assert json.loads(folder.verdict.read_text())["winner_identity"] == best.identity
    assert len(list(folder.tune.glob("search/*/result.json"))) == 10
    assert len(list(folder.tune.glob("promote/*/result.json"))) == 2 * len(result.candidates)


def test_the_best_and_the_controls_were_promoted_with_the_same_seeds(result):
    promoted = {candidate.policy.identity for candidate in result.candidates}
    assert {row.policy.identity for row in result.rows[:2]} <= promoted
    assert scheme("none").identity in promoted
    roles = [candidate.role for candidate in result.candidates]
    assert roles.count("none") == 1
    assert "scheme" in roles
    for candidate in result.candidates:
        assert [run.seed for run in candidate.runs] == [1, 2]
    by_validation = max(c.validation_accuracy for c in result.candidates)
    assert result.verdict.winner.validation_accuracy == by_validation
    for row in result.rows:
        assert bool(row.full_length) == (row.policy.identity in promoted)


def test_the_same_policy_has_the_same_figures_in_another_search(result, tmp_path):
    """Another order, other neighbours: the same score to the last digit."""
    config = changed(
        'search.warm_start=["mixup", "rand_augment", "none"]', "search.trials=3", "promotion.top=1"
    )
    again = run_search(config, RunFolder(tmp_path / "again"), Silence())
    before = {row.policy.identity: row.figures for row in result.rows}
    assert len(again.rows) == 3
    for row in again.rows:
        expected = dict(before[row.policy.identity], images_per_second=None)
        assert dict(row.figures, images_per_second=None) == expected


def test_asha_stops_probes_and_they_are_called_stopped(tmp_path):
    config = changed('search.scheduler="asha"', "search.probe_epochs=3", "promotion.seeds=1")
    result = run_search(config, RunFolder(tmp_path / "asha"), Silence())
    statuses = [row.status for row in result.rows]
    assert len(statuses) == 10
    assert statuses.count(STOPPED) > 0
    assert statuses.count(FINISHED) > 0
    assert statuses == sorted(statuses)  # finished rank before stopped
    stopped = {row.policy.identity for row in result.rows if row.status == STOPPED}
    for candidate in result.candidates:
        assert candidate.role != "candidate" or candidate.policy.identity not in stopped


def test_students_that_diverge_are_failures_with_a_reason(tmp_path):
    content = TINY.model_dump(mode="json")
    content["student"]["recipe"]["learning_rate"] = 1e30
    content["search"]["trials"] = 3
    folder = RunFolder(tmp_path / "diverged")
    with pytest.raises(
        SearchFailedError, match="of its probes 3 of 3 failed: 3 of 3 with 'DivergedError"
    ) as caught:
        run_search(SearchConfig.model_validate(content), folder, Silence())
    again = f"augury search {folder.config} --run ANOTHER"
    assert caught.value.advice.endswith(f"begin anew with: {again}")  # to resume would be in vain
    table = pq.read_table(folder.policies)
    assert table.column("status").to_pylist() == [FAILED] * 3
    assert all("no longer a finite number" in f for f in table.column("reason").to_pylist())


def test_nothing_is_written_where_the_config_cannot_work(tmp_path):
    with pytest.raises(UserError, match="validation split of 5 images misses class"):
        run_search(changed("data.validation_images=5"), RunFolder(tmp_path / "run"), Silence())
    with pytest.raises(UserError, match=r"search.warm_start: unknown scheme 'cutmx': did you mean"):
        run_search(changed('search.warm_start=["cutmx"]'), RunFolder(tmp_path / "run"), Silence())
    with pytest.raises(UserError, match="cpus_per_trial"), connected(ClusterConfig()):
        run_search(changed("cluster.cpus_per_trial=64"), RunFolder(tmp_path / "run"), Silence())
    assert not (tmp_path / "run").exists()


def test_a_machine_that_can_hold_no_trial_is_refused():
    config = ClusterConfig(gpus_per_trial=64)
    with (
        pytest.raises(UserError, match="gpus_per_trial: a trial asks for 64 GPU"),
        connected(config),
    ):
        pass


def test_storage_without_room_is_refused(tmp_path):
    require_storage(tmp_path, students=2, bytes_each=1)
    with pytest.raises(UserError, match="the checkpoints of 2 students at a time take about 1,9"):
        require_storage(tmp_path, students=2, bytes_each=10**18)
    assert not list(tmp_path.iterdir())


def test_a_cluster_elsewhere_may_grow_but_says_what_it_lacks():
    assert lacking(ClusterConfig(address="auto")) is None
    wanting = lacking(ClusterConfig(address="auto", gpus_per_trial=0.5))
    assert wanting.startswith("cluster.gpus_per_trial: a trial asks for 0.5 GPU, the largest node")


def addresses_of(driver: int) -> set[str]:
    """On which a process and all that it began listen."""
    processes = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
    found = [one for each in processes for one in each.net_connections("tcp")]
    # gRPC's sockets are those of IPv6, also for 127.0.0.1.
    listening = (one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)
    return {address.removeprefix("::ffff:") for address in listening}


def test_ctrl_c_ends_the_search_and_keeps_what_is_finished(tmp_path):
    """Pressed once, in a process of its own, as soon as one probe is in the table. Until then it
    listens for nobody elsewhere."""
    (tmp_path / "tiny.yaml").write_text(changed("search.trials=200").to_yaml())
    # A test run that was started in the background ignores the signal, and so would its children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code += "from search.cli import main; main()"
    command = [sys.executable, "-c", code, "search", "tiny.yaml", "--run", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("2/200"):
                listening = addresses_of(process.pid)
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert listening == {"127.0.0.1"}
    assert process.returncode == 130, rest
    assert f"stopped; go on with: augury resume {tmp_path / 'run'}" in rest
    assert "Traceback" not in rest
    table = pq.read_table(tmp_path / "run" / "policies.parquet")
    assert 2 <= table.num_rows < 200
    assert set(table.column("status").to_pylist()) == {FINISHED}


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:port", "no.such.host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(address, tmp_path):
    command = [Path(sys.executable).parent / "augury", "search", "--run", "run"]
    command += ["--set", f"cluster.address={address}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"cluster.address: nothing answers at '{address}'" in done.stderr
    assert not list(tmp_path.iterdir())

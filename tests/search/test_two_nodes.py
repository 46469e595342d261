"""A search on two nodes, from the laptop to the table: of ports alone, or of a network."""

import json
import os
import platform
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from object_store import CREDENTIALS, served
from ray_cluster import LOOPBACK, TOKEN, WITH_TOKEN, Head, killed, ray_head, ray_node, until

from search.config import load_config
from search.ledger import Trial, opened
from search.progress import Silence
from search.results import FINISHED
from search.run import run_search
from search.run_folder import RunFolder
from search.table import read_parquet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = [
    "data.student_images=40",
    "teacher={width: 4, epochs: 4}",
    "student.recipe={repeats: 8, batch_size: 8}",
    # Later proposals would follow from what had ended before, which two nodes may do in any order.
    "search={trials: 12, probe_epochs: 3, random_trials: 12}",
    "promotion={top: 1, epochs: 2, seeds: 1}",
]
OF_THE_NODES = {"seconds", "images_per_second", "attempts", "node"}
SOON = {
    "RAY_health_check_period_ms": "1000",  # a node that is gone is missed
    "RAY_metrics_report_interval_ms": "1000",
}
ELSEWHERE = "elsewhere"  # host name of the second machine


@dataclass(frozen=True)
class Machines:
    """Where two nodes may run: by their addresses, the name of the second one's host, and the words
    that begin a process there."""

    first: str = LOOPBACK
    second: str = LOOPBACK
    name: str = platform.node()
    there: tuple[str, ...] = ()


@pytest.fixture(params=["ports", "network"])
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """Two nodes on the loopback; or the second in a network namespace, as a host of its own, at the
    other end of a cable."""
    if request.param == "ports":
        yield Machines()
        return
    name, ours, theirs = (f"{what}{os.getpid()}" for what in ("augury", "a", "b"))
    found = Machines("10.213.74.1", "10.213.74.2", ELSEWHERE, into(name))
    with ExitStack() as undo:
        for line in (
            f"netns add {name}",
            f"link add {ours} type veth peer name {theirs} netns {name}",
            f"addr add {found.first}/30 dev {ours}",
            f"link set {ours} up",
            f"-n {name} addr add {found.second}/30 dev {theirs}",
            f"-n {name} link set {theirs} up",
            f"-n {name} link set lo up",
        ):
            if not done("ip", *line.split()):
                pytest.skip(f"networks cannot be made here: ip {line}")
            if "netns add" in line:  # with which the cable goes, too
                undo.callback(done, "ip", "netns", "del", name)
        if not done(*found.there, "true"):
            pytest.skip("hosts cannot be named here")
        yield found


def into(namespace: str) -> tuple[str, ...]:
    named = f'hostname {ELSEWHERE} && exec "$@"'
    return ("ip", "netns", "exec", namespace, "unshare", "--uts", "sh", "-c", named, "sh")


def done(*command: str) -> bool:
    there = shutil.which(command[0]) is not None
    return there and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def here(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same search on this machine alone."""
    folder = RunFolder(tmp_path_factory.mktemp("here") / "run")
    run_search(load_config(overrides=SETTINGS), folder, Silence())
    return folder


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUGURY_TOKEN", TOKEN)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def join(head: Head, machines: Machines, there: tuple[str, ...]) -> Any:
    words = (f"--address={head.gcs}", "--num-cpus=1", f"--node-ip-address={machines.second}")
    return ray_node(head.environment, *words, before=list(there))


def submitted(*words: str) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["submit", "--name", "two", *settings, *words]


def figures(head: Head) -> dict[str, float]:
    """Those of the probes of `run`, by the name at the metrics port and the tag of their own."""
    with urllib.request.urlopen(f"{head.metrics}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if match := re.match(r"ray_augury_(\w+)\{(.*)\} (\S+)$", line):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            own = [tags[k] for k in ("state", "reason", "objective") if k in tags]
            if (tags["run"], tags["stage"]) == ("run", "probe"):
                found[" ".join([match[1], *own])] = float(match[3])
    return found


def is_told(figures: dict[str, float]) -> bool:
    """Whether figures are those of a search at work, which nothing has failed in."""
    at_work = {"trials running": 1, "trials finished": 2, "epochs_total": 6, "images_per_second": 1}
    return figures.get("trials failed") == 0 and all(
        figures.get(name, 0) >= least for name, least in at_work.items()
    )


def rows(table: Path) -> list[dict[str, Any]]:
    found = read_parquet(table).to_pylist()
    return [{k: v for k, v in row.items() if k not in OF_THE_NODES} for row in found]


def test_a_node_that_is_taken_away_costs_nothing_but_time(machines, here, augury, laptop, tmp_path):
    with served() as bucket, ExitStack() as cluster:
        # The loopback, where the bucket is, is not that of another host.
        where = bucket.address("run") if machines == Machines() else str(tmp_path / "run")
        start = ray_head(tmp_path / "head", "--num-cpus=1", ip=machines.first, **WITH_TOKEN, **SOON)
        head = cluster.enter_context(start)
        laptop.setenv("RAY_ADDRESS", head.address)
        worker = cluster.enter_context(join(head, machines, machines.there))
        until(lambda: head.nodes() == 2)

        def standing_of_it() -> dict[str, Any]:
            told = json.loads(augury("status", "two", "--json")[1])
            assert told["status"] in ("pending", "running"), told
            return told["standing"] or {"states": {}}

        def finished() -> int:
            return standing_of_it()["states"].get("finished", 0)

        assert augury(*submitted("--run", where))[0] == 0
        before = until(finished, 300)
        until(lambda: finished() > before)
        assert standing_of_it()["trials"] == 12
        until(lambda: re.search("2 running(.*\n)*best score", augury("watch", "two", "--once")[1]))

        killed(worker)
        before = finished()
        until(lambda: finished() > before)
        until(lambda: is_told(figures(head)))
        assert augury("logs", "two", "--follow")[0] == 0
        ended = json.loads(augury("status", "two", "--json")[1])
        assert (ended["status"], ended["exit_code"]) == ("succeeded", 0), ended
        until(lambda: head.nodes() == 1)
        assert augury("fetch", "two", "--to", "fetched")[0] == 0
    fetched = RunFolder(tmp_path / "fetched")
    assert rows(fetched.policies) == rows(here.policies)
    assert fetched.best_policy.read_bytes() == here.best_policy.read_bytes()
    require_told(fetched, machines)


def require_told(fetched: RunFolder, machines: Machines) -> None:
    with opened(fetched.ledger) as ledger:
        probes: list[Trial] = ledger.of("probe")
    assert [trial.status for trial in probes] == [FINISHED] * 12
    # Those on the node, before it was missed; what had ended was not paid for again.
    attempts = sorted(trial.attempts for trial in probes)
    assert attempts[:9] == [1] * 9
    assert attempts[-1] > 1
    assert {trial.places["node"] for trial in probes} == {platform.node(), machines.name}


def test_a_run_on_the_disk_of_one_node_is_refused_before_it_starts(augury, laptop, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    apart = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {runs} && exec "$@"', "sh")
    if not done(*apart, "true"):
        pytest.skip("file systems cannot be mounted here")
    start = ray_head(tmp_path / "head", "--num-cpus=1", ip=LOOPBACK, **WITH_TOKEN, **SOON)
    with start as head, join(head, Machines(), apart):
        laptop.setenv("RAY_ADDRESS", head.address)
        until(lambda: head.nodes() == 2)
        code, out, said = augury(*submitted())
        assert (code, "the cluster has 2 nodes, and without --run" in said) == (2, True)
        code, out, said = augury(*submitted("--run", str(runs / "run"), "--wait"))
        sentence = rf"{re.escape(str(runs / 'run'))}: the node \S+ cannot read and write it "
        assert code == 2, out
        assert re.search(f"^augury: {sentence}.*--run s3://BUCKET/NAME", said, re.MULTILINE)
        code, out, _ = augury("status", "two")
        assert code == 0
        assert re.search(sentence, out)
        assert (runs / "run" / "trials.jsonl").read_text() == ""

"""One local Ray cluster for all tests of a module that ask for it, and a run that was told."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import ray
from object_store import CREDENTIALS
from ray_cluster import TOKEN

from search.cli import main
from search.config import load_config
from search.ledger import Trial, opened
from search.run_folder import RunFolder
from spaces import PolicySpace, scheme

ATTACK = "</td><script>document.title = 'taken'</script>$x_1$"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two CPUs; teachers are cached in a folder of the module's own.

    Its workers can import what lies in tests/fixtures, and have the credentials of its S3 server.
    """
    patch = pytest.MonkeyPatch()
    fixtures = str(Path(__file__).parent.parent / "fixtures")
    patch.syspath_prepend(fixtures)
    patch.setenv("PYTHONPATH", fixtures, prepend=os.pathsep)
    for name, value in CREDENTIALS.items():
        patch.setenv(name, value)
    patch.setenv("AUGURY_CACHE", str(tmp_path_factory.mktemp("cache")))
    # Ray's sockets lie in its folder, and the path of a socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield context.address_info["address"]
        ray.shutdown()
    patch.undo()


@pytest.fixture
def augury(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """The command, in this process; returns its exit code and what it said."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["augury", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code or 0
        out, said = capfd.readouterr()
        assert TOKEN not in out + said
        return int(code), out, said

    return run


@pytest.fixture(scope="session")
def told_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of a run that was never run: 40 probes, of which some were stopped, some failed
    and one has no end, and students of full length, half of the way. A policy and a failure are
    named as an attacker would."""
    told = load_config(
        overrides=[
            "search={trials: 60, probe_epochs: 2, further_objectives: [validation_loss]}",
            "promotion={epochs: 3, seeds: 2}",
        ]
    )
    folder = RunFolder(tmp_path_factory.mktemp("told") / "run")
    versions = {"augury": "1", "torch": "2"}
    folder.create(told.to_yaml(), {"versions": versions, "data_hash": "d" * 16})
    draw = np.random.default_rng(0)
    space, places = PolicySpace(), {"node": "n", "device": "cpu", "batch_size": 64}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with opened(folder.ledger) as ledger:
        ledger.sitting(versions)
        ledger.begin_stage("probe", 60)
        for number in range(40):
            asked = study.ask()
            policy = scheme("none") if number == 0 else space.suggest(asked)
            if number == 1:
                policy = policy.model_copy(update={"name": ATTACK})
            trial = ledger.began(Trial(f"{number:05d}", "probe", policy, 0, asked.params))
            if number % 8 == 7:
                ledger.ended(trial, "failed", f"{ATTACK} in step {number}")
                continue
            score = float(draw.normal())
            told_by = {"score": score, "validation_loss": 3 - score + draw.normal()}
            for epoch in range(1, 2 if number % 5 == 4 else 3):
                accuracy = {"validation_accuracy": 0.9 - 0.02 * score}
                ledger.epoch(trial, {"epoch": epoch, **told_by, **accuracy}, seconds=2.0, **places)
            if number != 38:
                ledger.ended(trial, "stopped" if number % 5 == 4 else "finished")
        ledger.begin_stage("promotion", 8)
        for probe in ledger.of("probe")[:4]:
            for seed in (1, 2):
                student = Trial(f"{probe.policy.identity}-{seed}-3-student", "promotion",
                                probe.policy, seed)  # fmt: skip
                student = ledger.began(student)
                for epoch in (1, 2, 3):
                    figures = {"validation_accuracy": 0.3 * epoch, "validation_loss": 1 / epoch}
                    ledger.epoch(student, {"epoch": epoch, **figures}, seconds=2.0, **places)
                ledger.ended(student, "finished", test_accuracy=0.9 - float(probe.id) / 100)
    return folder

"""A run is validated for real: what is missing is trained, nothing twice, and auto goes by it."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from search import load_run
from search.compare import compare, pair
from search.config import load_config
from search.ledger import read
from search.predictors import OUTCOMES, Recommendation
from search.progress import Silence
from search.recommendations import applied, keep
from search.results import FullLength
from search.run import run_search, validate_run
from search.run_folder import RunFolder
from search.validation import lengths_of
from spaces import UserError, load_policy, scheme
from trainers.student import OBJECTIVES

CONFIG = load_config(
    overrides=[
        "data.student_images=40",
        "teacher={width: 4, epochs: 4}",
        "student.recipe={repeats: 2, batch_size: 8}",
        "search={trials: 3, probe_epochs: 2, warm_start: [none, cutmix, mixup]}",
        "promotion={top: 1, epochs: 2, seeds: 1}",
    ]
)


@pytest.fixture(scope="module")
def folder(cluster, tmp_path_factory):
    found = tmp_path_factory.mktemp("runs") / "run"
    return run_search(CONFIG, found).folder


def begun(folder: RunFolder) -> Counter[str]:
    lines = map(json.loads, folder.ledger.read_text().splitlines())
    return Counter(line["trial"] for line in lines if line["event"] == "began")


def test_too_few_policies_are_refused_before_anything_is_trained(folder):
    before = begun(folder)
    config = load_config(folder.config)
    wanted = len({trial.policy.identity for trial in read(folder.ledger).students("2-student")})
    assert wanted < 4
    with pytest.raises(UserError, match=f"{wanted} policies have both probes and students"):
        validate_run(folder, Silence(), schemes=[], random=0)
    assert begun(folder) == before and load_config(folder.config) == config


@pytest.mark.slow
def test_what_is_missing_is_trained_and_auto_goes_by_what_is_found(folder):
    before = begun(folder)
    table = folder.policies.read_bytes()
    found = validate_run(folder, Silence(), schemes=["none", "cutmix", "mixup"], random=1)
    after = begun(folder)
    assert after & before == before and set(after.values()) == {1}
    new = after - before
    # Four policies, of which three have been probed with two epochs; one epoch is new for all.
    assert sum(name.endswith("-probe-1") for name in new) == 4
    assert sum(name.endswith("-probe-2") for name in new) == 1
    assert sum(name.endswith("-2-student") for name in after) == len(found.candidates) == 4
    assert {(p.figure, p.epochs) for p in found.predictions} <= {
        (name, epochs) for name in OBJECTIVES for epochs in (1, 2)
    }
    assert len(found.predictions) > len(OBJECTIVES)
    said = json.loads(folder.validation.read_text())
    assert [p["figure"] for p in said["predictions"]] == [p.figure for p in found.predictions]
    with folder.validation.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(OUTCOMES) * len(found.predictions)
    assert folder.policies.read_bytes() == table  # the ranking is not touched
    assert read(folder.ledger).concluded
    again = validate_run(folder, Silence(), schemes=["none", "cutmix", "mixup"], random=1)
    assert again.as_dict() == found.as_dict() and begun(folder) == after


def test_auto_takes_what_was_recommended_for_these_data_teacher_and_student(folder, tmp_path):
    made_by = folder.read_marker()
    auto = CONFIG.model_copy(
        update={"search": CONFIG.search.model_copy(update={"objective": "auto"})}
    )
    keep(Recommendation("kd_gap", 1, True, "It is."), made_by, CONFIG)
    with_it = applied(auto).search
    assert (with_it.objective, with_it.mode, with_it.probe_epochs) == ("kd_gap", "min", 1)
    other = load_config(overrides=["student.quantization.weight_bits=4"])
    with pytest.raises(UserError, match="run augury validate"):
        applied(other.model_copy(update={"data": CONFIG.data, "teacher": CONFIG.teacher}))
    keep(Recommendation("score", 2, False, "Nothing foretells."), made_by, CONFIG)
    with pytest.raises(UserError, match=r"Nothing foretells\. Name an objective"):
        run_search(auto, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lengths_are_powers_of_two_up_to_the_probes_own():
    def lengths(epochs: int) -> list[int]:
        return lengths_of(load_config(overrides=[f"search.probe_epochs={epochs}"]))

    assert [lengths(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_a_run_is_an_object_in_a_notebook(folder, tmp_path):
    run = load_run(folder.path)
    assert list(run.policies["rank"]) == list(range(1, len(run.policies) + 1))
    assert run.best_policy == load_policy(folder.best_policy)
    assert run.verdict["winner_identity"] == run.best_policy.identity
    assert run.standing.done
    for figure in (run.plot_history(), *run.plot_agreement(), run.plot_curves()):
        figure.savefig(tmp_path / "figure.png")
    assert run.plot_front() == []
    with pytest.raises(UserError, match="is not a run"):
        load_run(tmp_path)


def test_runs_are_compared_over_the_seeds_that_both_have(folder, tmp_path):
    """Another run, of which one student has been trained anew, a little better."""
    other = RunFolder(shutil.copytree(folder.path, tmp_path / "other"))
    other.config.write_text(other.config.read_text().replace("trials: 3", "trials: 4"))
    lines = [json.loads(line) for line in other.ledger.read_text().splitlines()]
    none = scheme("none").identity
    for line in lines:
        if line["event"] == "ended" and line["trial"].startswith(f"{none}-1-"):
            line["test_accuracy"] += 0.25
    other.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    marker = json.loads(other.marker.read_text())
    other.marker.write_text(json.dumps(marker | {"data_hash": "of other images"}))
    found = compare([folder, other])
    assert found.settings.pop("data_hash") == [marker["data_hash"], "of other images"]
    assert found.settings == {"search.trials": [3, 4]}
    pairs = {pair.policy: pair for pair in found.pairs[0, 1]}
    assert pairs["none"].seeds == (1,) and pairs["none"].interval is None  # one seed has none
    assert pairs.pop("none").difference == pytest.approx(0.25)
    assert pairs and {pair.difference for pair in pairs.values()} == {0.0}
    json.dumps(found.as_dict())
    with pytest.raises(UserError, match="two runs or more"):
        compare([folder])


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_an_interval_is_that_of_the_paired_t_test(first, second):
    def students(accuracies: Sequence[float]) -> list[FullLength]:
        return [FullLength(seed, 0.0, 0.0, value) for seed, value in enumerate(accuracies)]

    found = pair("none", students(first), students(second))
    assert found is not None and found.seeds == tuple(range(len(first)))
    differences = np.subtract(second[: len(first)], first)
    assume(differences.std() > 1e-9)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, expected, atol=1e-9)
    assert pair("none", students(first), []) is None

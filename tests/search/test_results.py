"""The run folder and the ranked table."""

import csv
import json
import math
import re

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search.results import (
    CONTROL,
    FAILED,
    FINISHED,
    SCHEMA,
    SCHEMA_VERSION,
    STOPPED,
    FullLength,
    Row,
    export,
    fronts,
    ranked,
    read_parquet,
    to_table,
    with_full_length,
    write_parquet,
)
from search.run_folder import RunFolder
from spaces import UserError, scheme
from trainers.student import FIGURES


def row(trial_id: str, name: str, status: str = FINISHED, score: float = math.nan) -> Row:
    figures = {"score": score, "validation_accuracy": 0.9, "epoch": 3}
    return Row(trial_id, status, scheme(name), {"form": "scheme"}, figures, seconds=1.5)


ROWS = [
    row("b", "mixup", FAILED),
    row("c", "cutmix", score=0.5),
    row("a", "none", score=-0.5),
    row("d", "rand_augment", STOPPED, score=-2.0),
    Row("control_none", CONTROL, scheme("none+cutmix")),
]
RUNS = (FullLength(1, 0.9, 0.3, 0.8), FullLength(2, 0.94, 0.2, 0.9))


@pytest.fixture
def table() -> pa.Table:
    rows = with_full_length(ranked(ROWS, {"score": "min"}), {scheme("none").identity: RUNS})
    return to_table(rows, {"score": "min"}, {"seed": "0", "config": "data: digits\n"})


def test_finished_trials_rank_first_by_objective():
    by_score = [r.trial_id for r in ranked(ROWS, {"score": "min"})]
    assert by_score == ["a", "c", "d", "b", "control_none"]
    other_way = [r.trial_id for r in ranked(ROWS, {"score": "max"})]
    assert other_way == ["c", "a", "d", "b", "control_none"]


def test_with_several_objectives_the_front_is_first():
    """Against the definition, pair by pair."""
    random = np.random.default_rng(0)
    costs = random.integers(0, 6, size=(40, 2)).tolist()

    def beats(a: list[float], b: list[float]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    layers, left, layer = {}, set(range(40)), 0
    while left:
        front = {i for i in left if not any(beats(costs[j], costs[i]) for j in left)}
        layers |= dict.fromkeys(front, layer)
        left, layer = left - front, layer + 1
    assert fronts(costs) == [layers[i] for i in range(40)]
    rows = [
        Row(f"{i:02}", FINISHED, scheme("none"), {}, {"score": a, "validation_accuracy": -b})
        for i, (a, b) in enumerate(costs)
    ]
    found = ranked(rows, {"score": "min", "validation_accuracy": "max"})
    order = [int(row.trial_id) for row in found]
    assert order == sorted(range(40), key=lambda i: (layers[i], costs[i][0], i))


def test_a_finished_trial_without_a_value_ranks_behind_a_stopped_one_with_it():
    rows = [row("a", "none", score=math.nan), row("b", "mixup", STOPPED, score=2.0)]
    assert [r.trial_id for r in ranked(rows, {"score": "min"})] == ["b", "a"]
    assert [r.trial_id for r in ranked(rows, {"score": "max"})] == ["b", "a"]
    assert not rows[0].has("score")


def test_the_largest_seed_fits_the_table():
    runs = (FullLength(2**31 + 5, 0.9, 0.3, 0.8),)
    rows = with_full_length(ROWS[2:3], {scheme("none").identity: runs})
    assert to_table(rows, {"score": "min"}, {}).to_pylist()[0]["full_seeds"] == [2**31 + 5]


def test_the_table_has_a_row_per_trial_and_every_figure(table):
    assert table.column("rank").to_pylist() == [1, 2, 3, 4, 5]
    assert set(FIGURES) < set(table.column_names)
    assert table.schema.equals(SCHEMA)
    assert table.column("objective").to_pylist() == [-0.5, 0.5, -2.0, None, None]
    assert table.column("policy").to_pylist()[:2] == ["none", "cutmix"]


def test_full_length_figures_are_means_and_deviations_over_seeds(table):
    first = table.to_pylist()[0]
    assert first["full_seeds"] == [1, 2]
    assert first["full_validation_accuracy_mean"] == pytest.approx(0.92)
    assert first["full_validation_accuracy_std"] == pytest.approx(math.sqrt(0.0008))
    assert first["full_test_accuracy_mean"] == pytest.approx(0.85)
    assert table.to_pylist()[1]["full_test_accuracy_mean"] is None


def test_parquet_keeps_everything_and_says_what_made_it(table, tmp_path):
    path = tmp_path / "policies.parquet"
    write_parquet(table, path)
    again = read_parquet(path)
    assert again.equals(table)
    assert again.schema.metadata[b"augury.schema_version"] == b"2"
    assert again.schema.metadata[b"augury.config"] == b"data: digits\n"
    assert len(pd.read_parquet(path)) == 5


def test_a_table_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="schema version none is not known"):
        read_parquet(path)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="no readable table"):
        read_parquet(path)
    with pytest.raises(UserError, match="no readable table"):
        read_parquet(tmp_path / "nowhere.parquet")


def test_export_by_ending(table, tmp_path):
    export(table, str(tmp_path / "p.parquet"))
    assert read_parquet(tmp_path / "p.parquet").num_rows == 5
    export(table, str(tmp_path / "p.json"))
    records = json.loads((tmp_path / "p.json").read_text())
    assert [r["policy"] for r in records] == table.column("policy").to_pylist()
    export(table, str(tmp_path / "p.csv"))
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["rank"] for r in rows] == list("12345")
    assert rows[0]["full_seeds"] == "1 2"
    assert json.loads(rows[0]["policy_json"])["name"] == "none"
    with pytest.raises(UserError, match=r"writes .parquet, .csv or .json, got '.xlsx'"):
        export(table, str(tmp_path / "p.xlsx"))
    assert not (tmp_path / "p.xlsx").exists()
    with pytest.raises(UserError, match=r"there is no folder .*nowhere to write to"):
        export(table, str(tmp_path / "nowhere" / "p.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv: cannot be written: Is a directory"):
        export(table, str(tmp_path / "folder.csv"))
    with pytest.raises(UserError, match=r"cannot be written: File name too long"):
        export(table, str(tmp_path / ("x" * 300 + ".csv")))


def test_export_to_an_address(table, tmp_path):
    export(table, f"file://{tmp_path}/p.parquet")
    assert read_parquet(tmp_path / "p.parquet").equals(table)
    export(table, "memory://bucket/p.parquet")
    with fsspec.open("memory://bucket/p.parquet") as file:
        assert pq.read_table(file).equals(table)
    with pytest.raises(UserError, match="Protocol not known: nowhere"):
        export(table, "nowhere://bucket/p.parquet")


def test_the_documented_contract_is_the_schema(repo_root):
    """Names, types, what may be null, and the version."""
    text = (repo_root / "docs" / "policies-parquet.md").read_text()
    assert f"This is version {SCHEMA_VERSION} of the schema" in text
    documented = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    types = [(field.name, str(field.type), field.nullable) for field in SCHEMA]
    spelt = {"list<element: int64>": "list of int64", "list<item: int64>": "list of int64"}
    expected = [(n, spelt.get(t, t) + (", or null" if null else "")) for n, t, null in types]
    assert documented == expected


def test_a_run_folder_is_made_once_and_opened_again(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.require_new()
    folder.create("data: {}\n", {"seed": 3})
    assert RunFolder.open(tmp_path / "run").config.read_text() == "data: {}\n"
    assert json.loads(folder.marker.read_text())["seed"] == 3
    with pytest.raises(UserError, match="holds a run already"):
        folder.require_new()


def test_folders_that_are_no_run_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it holds no readable run.json"):
        RunFolder.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run of Augury"):
        RunFolder(tmp_path).require_new()
    with pytest.raises(UserError, match="exists and is not a run of Augury"):
        RunFolder(tmp_path / "notes.txt").require_new()
    with pytest.raises(UserError, match="cannot be made: File name too long"):
        RunFolder(tmp_path / ("x" * 300)).require_new()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a link to nowhere"):
        RunFolder(tmp_path / "link").require_new()
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="no readable run"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="not the marker of a run"):
        RunFolder.open(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "augury-run", "version": 9}')
    with pytest.raises(UserError, match="version 9 is not known"):
        RunFolder.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is no folder to write to"):
        RunFolder(tmp_path / "file" / "run").require_new()


def test_an_empty_folder_can_hold_a_run(tmp_path):
    RunFolder(tmp_path).require_new()

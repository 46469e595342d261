"""The run folder and the ranked table."""

import json
import math
import threading
from itertools import combinations

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search.ledger import opened
from search.results import (
    CONTROL,
    FAILED,
    FINISHED,
    STOPPED,
    FullLength,
    Row,
    foremost,
    fronts,
    ranked,
    spread,
    with_full_length,
)
from search.run_folder import RunFolder
from search.table import SCHEMA, SCHEMA_VERSION, described, read_parquet, to_table, write_parquet
from spaces import UserError, scheme
from trainers.student import FIGURES

PLACE = {"seed": 7, "attempts": 2, "device": "cpu", "node": "here", "code_version": "0.1"}
HASHES = {"config_hash": "c0", "data_hash": "d0", "teacher_hash": "t0"}


def row(trial_id: str, name: str, status: str = FINISHED, score: float = math.nan) -> Row:
    figures = {"score": score, "validation_accuracy": 0.9, "epoch": 3}
    failure = "DivergedError: no" if status == FAILED else None
    return Row(trial_id, status, scheme(name), {}, figures, 1.5, failure, **PLACE)


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
    return to_table(rows, {"score": "min"}, {"seed": "0", "config": "data: digits\n"} | HASHES)


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


def test_what_is_promoted_of_a_front_is_a_spread_of_it():
    """Against the best of all choices, on fronts of two and three objectives."""
    random = np.random.default_rng(0)
    for objectives in (2, 3):
        costs = random.random((12, objectives)) ** 2
        costs /= np.linalg.norm(costs, axis=1, keepdims=True)
        extent = costs / np.ptp(costs, axis=0)
        distances = np.linalg.norm(extent[:, None] - extent[None], axis=2)

        def farthest(chosen: tuple[int, ...], distances: np.ndarray = distances) -> float:
            return distances[:, list(chosen)].min(axis=1).max()

        for count in (1, 2, 4):
            chosen = tuple(spread(costs.tolist(), count))
            assert len(set(chosen)) == count
            assert chosen[0] == 0
            best = min(map(farthest, combinations(range(12), count)))
            assert farthest(chosen) <= 2 * best
    # On a line: the first is one end, then come the other one and the middle.
    assert spread([[i, 10 - i] for i in (0, 1, 2, 3, 5, 9, 10)], 3) == [0, 4, 6]
    assert spread([[1.0, 1.0]] * 3, 2) == [0, 1]


def test_promotion_takes_whole_fronts_and_of_the_last_its_ends():
    costs = [(0, 5), (5, 0), (1, 5), (2, 4), (3, 3), (4, 2), (6, 1), (math.nan, 0), (0, math.nan)]
    rows = [
        Row(f"{i}", FINISHED, scheme("none"), {}, {"score": a, "validation_accuracy": -b})
        for i, (a, b) in enumerate(costs)
    ]
    two = {"score": "min", "validation_accuracy": "max"}
    rows = ranked([*rows, row("stopped", "none", STOPPED, score=0.0)], two)

    def ids(count: int) -> list[str]:
        return [row.trial_id for row in foremost(rows, two, count)]

    assert ids(1) == ["0"]
    assert ids(2) == ["0", "1"]
    assert ids(3) == ["0", "4", "1"]
    assert ids(6) == ["0", "3", "4", "5", "1", "2"]
    assert ids(20) == ["0", "3", "4", "5", "1", "2", "6", "8"]  # 8 lacks an objective, 7 the first
    one = {"score": "min"}
    assert foremost(ranked(rows, one), one, 3) == ranked(rows, one)[:3]


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


def test_every_row_says_what_made_it(table):
    first, *_, failed, control = table.to_pylist()
    assert first.items() >= (HASHES | PLACE | {"seconds": 1.5, "reason": None}).items()
    assert failed["reason"] == "DivergedError: no"
    assert control.items() >= HASHES.items()
    assert table["reason"].to_pylist()[2] == "stopped by the scheduler after epoch 3"


def test_the_page_has_the_columns_as_they_are(table, repo_root):
    page = (repo_root / "docs" / "policies-parquet.md").read_text()
    assert described() in page
    assert f"This is version {SCHEMA_VERSION} of the schema" in page
    assert all(column.metadata[b"meaning"] for column in SCHEMA)
    units = {column.name: column.metadata[b"unit"].decode() for column in SCHEMA}
    assert units["seconds"] == "s"
    assert units["score"] == units["full_validation_loss_std"] == "nats"
    assert units["validation_accuracy"] == units["full_test_accuracy_mean"] == "fraction"


def test_others_read_the_table_in_one_line(table, tmp_path):
    path = tmp_path / "policies.parquet"
    write_parquet(table, path)
    for_all = table.to_pylist()
    assert polars.read_parquet(path).to_dicts() == for_all
    found = duckdb.sql(f"FROM '{path}'")
    assert [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()] == for_all
    frame = pd.read_parquet(path)
    assert list(frame["policy"]) == table["policy"].to_pylist()
    assert list(frame.columns) == SCHEMA.names
    with_unit = pq.read_schema(path).field("seconds").metadata
    assert with_unit[b"unit"] == b"s"


def test_a_reader_never_sees_half_a_table(table, tmp_path):
    """Somebody reads as often as they can while tables of other lengths take its place."""
    path = tmp_path / "policies.parquet"
    tables = [pa.concat_tables([table] * times) for times in (1, 40, 400)]
    lengths = {len(one) for one in tables}
    write_parquet(tables[0], path)

    def rewrite() -> None:
        for turn in range(60):
            write_parquet(tables[turn % 3], path)

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    while writer.is_alive():
        found = read_parquet(path)
        assert found["trial_id"].to_pylist()[:5] == table["trial_id"].to_pylist()
        seen.add(len(found))
    writer.join()
    assert seen <= lengths
    assert len(seen) > 1  # they did meet
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


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


def test_an_empty_folder_can_hold_a_run_and_so_can_what_a_kill_left_of_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.require_new()
    folder.config.write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run of Augury"):
        folder.require_new()
    folder.config.unlink()
    folder.create("data: {}\n", {})
    folder.marker.rename(tmp_path / ".run.json.0a1b2c.tmp")
    with opened(folder.ledger), pytest.raises(UserError, match="another process"):
        folder.create("data: {}\n", {"seed": 3})
    folder.create("data: {}\n", {"seed": 4})
    assert RunFolder.open(tmp_path).read_marker() == {"seed": 4}
    folder.marker.unlink()
    folder.ledger.write_text("something\n")
    with pytest.raises(UserError, match="exists and is not a run of Augury"):
        folder.require_new()

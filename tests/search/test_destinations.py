"""Exports: by ending, to this disk, and to an S3 server on this machine that checks signatures."""

import csv
import json
from collections.abc import Iterator

import fsspec
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import CREDENTIALS, KEY, SECRET, Objects, served

from search.destinations import export
from search.results import FINISHED, FullLength, Row
from search.table import read_parquet, to_table
from spaces import UserError, scheme


@pytest.fixture
def bucket(monkeypatch) -> Iterator[Objects]:
    """The objects by their path; the environment has the address and the credentials."""
    with served() as objects:
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{objects.host}")
        yield objects


@pytest.fixture
def table() -> pa.Table:
    runs = (FullLength(1, 0.9, 0.3, 0.8), FullLength(2, 0.94, 0.2, 0.9))
    figures = {"epoch": 3, "score": 0.5}
    rows = [Row(str(i), FINISHED, scheme("cutmix"), {}, figures) for i in range(4)]
    rows.append(Row("4", FINISHED, scheme("none"), {}, figures, full_length=runs))
    return to_table(rows, {"score": "min"}, {"config": "data: digits\n"})


def test_by_ending(table, tmp_path):
    export(table, str(tmp_path / "p.parquet"))
    again = read_parquet(tmp_path / "p.parquet")
    assert again.equals(table)
    assert again.schema.metadata == table.schema.metadata
    export(table, (tmp_path / "p.json").as_uri())
    records = json.loads((tmp_path / "p.json").read_text())
    assert records == table.to_pylist()
    export(table, str(tmp_path / "p.csv"))
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["rank"] for r in rows] == list("12345")
    assert rows[4]["full_seeds"] == "1 2"
    assert json.loads(rows[4]["policy_json"])["name"] == "none"
    with pytest.raises(UserError, match=r"writes .parquet, .csv or .json, got '.xlsx'"):
        export(table, str(tmp_path / "p.xlsx"))
    with pytest.raises(UserError, match=r"there is no folder .*nowhere to write to"):
        export(table, str(tmp_path / "nowhere" / "p.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv: cannot be written: Is a directory"):
        export(table, str(tmp_path / "folder.csv"))
    with pytest.raises(UserError, match=r"cannot be written: File name too long"):
        export(table, str(tmp_path / ("x" * 300 + ".csv")))
    assert len(list(tmp_path.iterdir())) == 4


def test_to_s3_with_credentials_from_the_environment(table, bucket, monkeypatch):
    export(table, "s3://bucket/a folder/p.parquet")
    (content,) = bucket.values()
    assert list(bucket) == ["/bucket/a%20folder/p.parquet"]
    assert pq.read_table(pa.BufferReader(content)).equals(table)
    assert polars.read_parquet(content)["policy"].to_list() == table["policy"].to_pylist()
    with pytest.raises(UserError, match=r"^s3://nobody/p.csv: cannot be written: .*NO_SUCH_BUCKET"):
        export(table, "s3://nobody/p.csv")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(UserError, match=r"^s3://bucket/q.csv: cannot be written: .*SIGNATURE_DOES"):
        export(table, "s3://bucket/q.csv")
    assert len(bucket) == 1


def test_credentials_in_an_address_are_refused_and_not_shown(table):
    with pytest.raises(UserError, match=r"^s3://\.\.\.: keep credentials out") as refused:
        export(table, f"s3://bucket/p.csv?access_key={KEY}&secret_key={SECRET}")
    assert SECRET not in str(refused.value)


def test_to_an_address_of_fsspec(table):
    export(table, "memory://folder/p.parquet")
    with fsspec.open("memory://folder/p.parquet") as file:
        assert pq.read_table(file).equals(table)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://bucket/p.csv?endpoint_override=127.0.0.1:9&scheme=http", "NETWORK_CONNECTION"),
        ("s3://bucket/p.csv?regio=here", "regio"),
        ("nope://bucket/p.csv", "Protocol not known: nope"),
        ("s3:///p.csv", "it names no bucket"),
    ],
)
def test_an_address_that_is_none_gets_one_sentence(table, address, sentence, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(UserError, match=sentence) as refused:
        export(table, address)
    assert str(refused.value).startswith(f"{address}: cannot be written: ")
    assert "\n" not in str(refused.value)

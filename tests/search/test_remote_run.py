"""A run at an address, on an S3 server on this machine: its files, its one driver, its refusals."""

import pickle
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import CREDENTIALS, KEY, SECRET, Objects, served

from search import remote_run
from search.claim import Claim
from search.cli import main
from search.ledger import Ledger, Trial, opened
from search.remote_run import RemoteRun
from search.run_folder import RunFolder
from search.storage import Folder, StorageError, Store
from spaces import UserError, scheme

VERSIONS = {"augury": "0"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with served() as objects:
        yield objects


def quiet(note: str) -> None: ...


def test_a_store_has_files_by_their_names(bucket, tmp_path):
    store = pickle.loads(pickle.dumps(Store(bucket.address("a run"))))
    assert store.listing() == {}
    assert store.get("one") is None
    large = bytes(range(256)) * 50_000  # in several parts
    (tmp_path / "large").write_bytes(large)
    store.put("one", b"1")
    store.put("below/none", b"")
    store.send(tmp_path / "large", "below/large")
    assert bucket["/bucket/a%20run/below/large"] == large
    assert sorted(store.listing()) == ["below/large", "below/none", "one"]
    assert list(store.listing(deep=False)) == ["one"]
    below = store.at("below")
    assert (str(below), below.get("none")) == ("s3://bucket/a run/below", b"")
    with below.writing("large") as file:
        file.write_bytes(b"small")
    below.bring("large", tmp_path / "again" / "small")
    assert (tmp_path / "again" / "small").read_bytes() == b"small"
    store.remove("one")
    store.remove("one")
    store.remove_all("below")
    store.remove_all("below")
    assert store.listing() == {}


def test_a_node_that_came_later_and_does_not_have_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with Folder(tmp_path / "run" / "checkpoints").writing("a.pt") as file:
        file.touch()
    gone = Folder(tmp_path / "gone" / "checkpoints")
    with pytest.raises(StorageError, match="is not on this node"), gone.writing("a.pt"):
        pass
    assert not (tmp_path / "gone").exists()


def test_what_stops_answering_is_waited_for_and_then_given_up(bucket, monkeypatch):
    monkeypatch.setattr("search.storage.PATIENCE", 2.0)
    store = Store(bucket.address("run"))
    store.put("one", b"1")
    assert store.get("one") == b"1"
    monkeypatch.setitem(bucket.failing, "status", 503)
    threading.Timer(1, bucket.failing.clear).start()
    assert store.get("one") == b"1"
    monkeypatch.setitem(bucket.failing, "status", 503)
    with pytest.raises(StorageError, match=r"^s3://bucket/run: .*SERVICE_UNAVAILABLE"):
        store.put("one", b"2")
    bucket.failing.clear()
    assert store.get("one") == b"1"


def test_one_process_at_a_time(bucket):
    store = Store(bucket.address("run"))

    def claim() -> Claim:
        return Claim(store, beat=0.1, dead=1.5)

    notes: list[str] = []
    with claim().held(quiet) as first:
        for _ in range(2):
            with pytest.raises(UserError, match=r"run: process \d+ on .+ is searching there"):
                claim().held(notes.append).__enter__()
        first.confirm()
    assert len(notes) == 2
    with claim().held(quiet) as slow:
        slow._over.set()  # as if its machine were gone
        time.sleep(0.2)
        with claim().held(quiet) as second:
            with pytest.raises(StorageError, match="another process goes on with the search"):
                slow.confirm()
            second.confirm()
    assert store.listing("drivers") == {}


class Ahead(dict[str, float]):
    """Times of a store whose clock is so many seconds before ours."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __setitem__(self, path: str, at: float) -> None:
        super().__setitem__(path, at + self.seconds)


@pytest.mark.parametrize("ahead", [-600.0, 0.0, 600.0])
def test_who_works_is_known_whatever_the_clocks_say(bucket, monkeypatch, ahead):
    monkeypatch.setattr(remote_run, "BEAT", 0.2)
    monkeypatch.setattr(remote_run, "DEAD", 0.6)
    address = bucket.address("run")
    bucket.times = Ahead(ahead)
    with Claim(Store(address), beat=0.1, dead=1.5).held(quiet) as claim:
        looker = RemoteRun(address)
        assert looker.is_worked_on()
        claim._over.set()  # as if its machine were gone
        time.sleep(1)
        looker.is_worked_on()  # it may have changed once more
        time.sleep(0.7)
        assert not looker.is_worked_on()
        assert not RemoteRun(address).is_worked_on()
    assert not RemoteRun(address).is_worked_on()


def probe(ledger: Ledger, *names: str) -> None:
    ledger.sitting(VERSIONS)
    for name in names:
        ledger.ended(ledger.began(Trial(name, "probe", scheme("none"), 0)), "finished")


def test_what_was_written_is_there_for_who_has_nothing(bucket, monkeypatch):
    """Line by line, whole again after some, and by the next process from the beginning."""
    monkeypatch.setattr(remote_run, "TOGETHER", 4)
    address = bucket.address("runs/x")
    first = RunFolder.at(address)
    first.require_new()
    with first.held(quiet):
        first.create("data: digits\n", {"seed": 3})
        with opened(first.ledger, first.publish_line) as ledger:
            probe(ledger, "00000", "00001", "00002")
            copy = RemoteRun(address)
            copy.refresh()  # while it is written
            assert copy.ledger.read_bytes() == first.ledger.read_bytes()
            assert len(bucket) < 10
    path = first.path
    del first, ledger
    assert not path.exists()
    second = RunFolder.open(address)
    assert second.read_marker() == {"seed": 3}
    assert second.config.read_text() == "data: digits\n"
    with second.held(quiet):
        with opened(second.ledger, second.publish_line) as ledger:
            assert list(ledger.trials) == ["00000", "00001", "00002"]
            probe(ledger, "00003")
        assert str(second) == address
        assert second.name == "x"
        assert second.named(second.policies) == "s3://bucket/runs/x/policies.parquet"
    lines = [path for path in bucket if "/trials/" in path and bucket[path]]
    del bucket[lines[-2]]
    with pytest.raises(UserError, match=r"trials/00000.: .*a line of the ledger is missing"):
        RemoteRun(address).refresh()


def test_what_a_kill_left_of_a_run_can_become_one(bucket):
    """The ledger is sent first, then the config, and the marker last."""
    run = RunFolder.at(bucket.address("runs/x"))
    with run.held(quiet):
        run.create("data: digits\n", {})
    del bucket["/bucket/runs/x/run.json"]
    again = RunFolder.at(bucket.address("runs/x"))
    with again.held(quiet):
        again.create("data: digits\n", {"seed": 4})
    assert RunFolder.open(bucket.address("runs/x")).read_marker() == {"seed": 4}
    for path in [path for path in bucket if "/trials/" in path or path.endswith("/run.json")]:
        del bucket[path]
    with pytest.raises(UserError, match="is not empty and no run of Augury"):
        RunFolder.at(bucket.address("runs/x")).require_new()


def test_a_line_that_could_not_be_sent_has_not_happened(bucket, monkeypatch):
    monkeypatch.setattr("search.storage.PATIENCE", 0.5)
    run = RunFolder.at(bucket.address("runs/x"))
    with run.held(quiet):
        run.create("", {})
        with opened(run.ledger, run.publish_line) as ledger:
            ledger.sitting(VERSIONS)
            monkeypatch.setitem(bucket.failing, "status", 503)
            with pytest.raises(OSError, match="SERVICE_UNAVAILABLE"):
                probe(ledger, "00000")
            bucket.failing.clear()
            probe(ledger, "00001")
        there = RemoteRun(bucket.address("runs/x"))
        there.refresh()
        with opened(there.ledger) as ledger:
            assert list(ledger.trials) == ["00001"]


@pytest.mark.parametrize(
    ("words", "secret", "sentence"),
    [
        (["search", "--run", "RUN"], "another", r"s3://bucket/runs/x: .*SIGNATURE_DOES_NOT_MATCH"),
        (["resume", "RUN"], "another", "SIGNATURE_DOES_NOT_MATCH"),
        (["search", "--run", "s3://b/x?scheme=http&endpoint_override=127.0.0.1:9"], SECRET, "conn"),
        (["search", "--run", "s3://nobody/x?QUERY"], SECRET, "NO_SUCH_BUCKET"),
        (["search", "--run", "OCCUPIED"], SECRET, "is not empty and no run of Augury"),
        (["resume", "RUN"], SECRET, "runs/x.* is not a run: it holds no readable run.json"),
        (["export", "RUN", "--to", "x.csv"], SECRET, "is not a run"),
        (["search", "--run", "memory://x"], SECRET, "memory:// is not seen by other processes"),
        (["search", "--run", f"s3://{KEY}:{SECRET}@b/x"], SECRET, "keep credentials out of"),
    ],
)
def test_an_address_that_is_of_no_use_gets_one_sentence_before_anything_is_trained(
    bucket, tmp_path, monkeypatch, capsys, words, secret, sentence
):
    bucket["/bucket/occupied/mine.txt"] = b"mine"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    named = {"RUN": bucket.address("runs/x"), "OCCUPIED": bucket.address("occupied")}
    query = bucket.address("").split("?")[1]
    words = [named.get(word, word.replace("QUERY", query)) for word in words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["augury", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert SECRET not in err
    assert list(bucket) == ["/bucket/occupied/mine.txt"]
    assert list(Path().iterdir()) == []
    assert re.search(sentence, err), err

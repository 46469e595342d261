"""Searches as jobs, on a real cluster: with a token and behind TLS."""

import base64
import http.server
import io
import json
import re
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import TOKEN, WITH_TOKEN, Head, free_ports, ray_head, until

from search import job_server, jobs
from search.code_version import code_version
from search.config import load_config
from search.job_driver import PACKED, TOLD, files_of
from search.job_log import FILES, Reader, machine_lines, packed
from search.job_package import stage
from search.ledger import opened, read
from search.run_folder import RunFolder
from spaces import scheme
from spaces.errors import UserError

pytestmark = pytest.mark.timeout(900)

TINY = [
    *("--set", "data.student_images=40"),
    *("--set", "teacher={width: 4, epochs: 2}"),
    *("--set", "student.recipe={repeats: 1, batch_size: 16}"),
    *("--set", "promotion={top: 1, epochs: 1, seeds: 1}"),
]


# --- a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    launched = {"RAY_NODE_TYPE_NAME": "head"}  # as by `ray up`, which would start workers, too
    more = WITH_TOKEN | launched | {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with ray_head(folder, "--num-cpus=2", **more) as found:
        until(found.nodes)
        yield found


@pytest.fixture(scope="module")
def https(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A proxy that ends TLS before the dashboard, and the certificate of its authority."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", *new.split(), "-keyout", key, "-out", certificate, *names],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    behind = int(head.address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening, context, behind), daemon=True).start()
        yield f"https://localhost:{listening.getsockname()[1]}", certificate


def serve(listening: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    while True:
        try:
            raw, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=hand_on, args=(raw, context, behind), daemon=True).start()


def hand_on(raw: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    try:
        outer = context.wrap_socket(raw, server_side=True)
    except OSError:  # a client that does not trust us
        raw.close()
        return
    with outer, socket.create_connection(("127.0.0.1", behind)) as inner:
        back = threading.Thread(target=pump, args=(inner, outer), daemon=True)
        back.start()
        pump(outer, inner)
        back.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            sink.sendall(content)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)  # which wakes the other pump


@pytest.fixture
def laptop(head: Head, monkeypatch, tmp_path) -> Head:
    """Where commands are given: in a folder of its own, with the cluster in the environment."""
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    monkeypatch.setenv("AUGURY_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    return head


# --- one search, from the laptop to the parquet ---------------------------------------------------


@pytest.mark.slow
def test_a_search_is_begun_watched_stopped_gone_on_with_and_fetched(
    laptop, https, augury, tmp_path, monkeypatch
):
    address, authority = https
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("AUGURY_CA", str(authority))
    run = tmp_path / "shared folder; touch oops"  # nothing of it may reach a shell
    (tmp_path / "mine.py").write_text(
        "from trainers.models.resnet import CifarResNet\n"
        "def small(num_classes): return CifarResNet(8, num_classes, width=4)\n"
    )
    scheme("cutmix").save(tmp_path / "policy.json")
    settings = [*TINY, "--run", str(run)]
    settings += ["--set", "teacher={network: 'mine:small', epochs: 2}"]
    warm = "warm_start: [none, policy.json]"

    more = ["--set", f"search={{trials: 40, probe_epochs: 2, {warm}}}"]
    code, out, _ = augury("submit", "--name", "first", *settings, *more, "--json")
    assert code == 0
    assert json.loads(out)["dashboard"] == f"{address}/#/jobs/first"

    def standing() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(augury("status", "first", "--json")[1])
        assert found["status"] in ("pending", "running"), found
        return found["standing"] or {"states": {}}

    until(lambda: standing()["states"].get("finished", 0) >= 2)
    before = standing()
    until(lambda: standing()["states"]["finished"] > before["states"]["finished"])
    assert before["trials"] == 40
    assert before["best"] is not None

    code, out, _ = augury("stop", "first")
    assert code == 0
    assert "stopped; go on with: augury submit" in out
    assert "killed" not in out
    begun = read(run / "trials.jsonl")
    assert {trial.code_version for trial in begun.trials.values()} == {code_version()}
    assert any("cutmix" in str(trial.policy) for trial in begun.trials.values())
    assert not list(tmp_path.glob("**/oops*"))

    fewer = ["--set", f"search={{trials: {len(begun.trials)}, probe_epochs: 2, {warm}}}"]
    code, out, said = augury("submit", "--name", "second", *settings, *fewer, "--wait")
    assert code == 0, out + said
    assert "Verdict" in out
    assert TOLD not in out
    assert augury("logs", "second")[1].strip() in out
    after = read(run / "trials.jsonl")
    done = {t.id for t in begun.trials.values() if t.status}
    assert {after.trials[name].attempts for name in done} == {1}

    require_fetched(augury, "second", run, tmp_path)

    listed = [job["job"] for job in json.loads(augury("jobs", "--json")[1])]
    assert listed == ["second", "first"]
    code, out, _ = augury("status", "first")
    assert "of 40" in out
    code, _, said = augury("stop", "first")
    assert code == 2
    assert "is over: it was stopped" in said
    monkeypatch.setenv("RAY_ADDRESS", laptop.address)
    for name in listed:  # what the cluster knows of the jobs does not hold the token either
        assert TOKEN not in str(laptop.client().get_job_info(name))
        assert TOKEN not in laptop.client().get_job_logs(name)


def require_fetched(augury: Any, job: str, run: Path, here: Path) -> None:
    assert augury("fetch", job, "--to", "here", "--students")[0] == 0
    brought = here / "here"
    for name in ("policies.parquet", "best_policy.json", "verdict.json", "config.yaml"):
        assert (brought / name).read_bytes() == (run / name).read_bytes()
    assert list((brought / "students").glob("*.pt"))
    assert augury("fetch", job, "--to", "here")[0] == 0  # the same run again
    (here / "else").mkdir()
    (here / "else" / "mine.txt").touch()
    code, _, said = augury("fetch", job, "--to", "else")
    assert code == 2
    assert "else holds something else" in said


@pytest.mark.slow
def test_a_search_that_cannot_be_ends_as_it_would_here_and_says_why(laptop, augury, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "below"
    words = ["submit", "--name", "cannot", *TINY, "--run", str(folder), "--wait"]
    code, out, said = augury(*words)
    assert code == 2
    assert f"augury: {folder}" in said
    assert "cannot be made" in out  # in the log, which was followed
    code, out, _ = augury("status", "cannot", "--json")
    found = json.loads(out)
    assert (found["status"], found["exit_code"]) == ("failed", 2)
    assert "cannot be made" in found["said"]
    assert augury("fetch", "cannot", "--to", "here")[0] == 2
    assert not (tmp_path / "here").exists()
    code, _, said = augury(*words)
    assert code == 2
    assert "a job of this name is there already" in said


# --- what is refused ------------------------------------------------------------------------------


def test_jobs_that_are_none_of_ours(laptop, augury, monkeypatch):
    client = laptop.client()
    client.submit_job(entrypoint="echo theirs", submission_id="theirs")
    monkeypatch.setattr(jobs, "SECONDS_TO_WORK", 1e6)  # of a test that would wait for a job
    for words in (["status"], ["logs"], ["logs", "--follow"], ["stop"]):
        code, out, said = augury(*words, "theirs")
        assert (code, out) == (2, "")
        assert "theirs is not a search of Augury" in said
        code, _, said = augury(*words, "nobody")
        assert code == 2
        assert "nobody does not exist" in said
    assert "theirs" not in augury("jobs")[1]
    without_scheme = laptop.address.removeprefix("http://")
    assert augury("jobs", "--address", without_scheme) == (0, "", "")
    assert augury("status", "../theirs")[0] == 2


@pytest.mark.parametrize("token", [None, "wrong", "two\nlines"])
def test_without_the_token_there_is_one_sentence(laptop, augury, monkeypatch, token):
    if token is None:
        monkeypatch.delenv("AUGURY_TOKEN")
    else:
        monkeypatch.setenv("AUGURY_TOKEN", token)
    code, out, said = augury("jobs")
    assert (code, out) == (2, "")
    assert "AUGURY_TOKEN" in said
    assert len(said.splitlines()) == 1
    assert token is None or token not in said


def test_a_certificate_that_is_not_trusted(laptop, https, augury, monkeypatch):
    address, authority = https
    code, _, said = augury("jobs", "--address", address)
    assert code == 2
    assert "certificate is not trusted" in said
    assert "--ca" in said
    without_scheme = address.removeprefix("https://")
    code, _, said = augury("jobs", "--address", without_scheme)
    assert (code, f"give its address as {address}" in said) == (2, True)
    assert augury("jobs", "--address", address, "--ca", str(authority))[0] == 0
    key = authority.parent / "key.pem"
    assert augury("jobs", "--address", address, "--ca", str(key))[0] == 2
    assert "no certificates" in augury("jobs", "--address", address, "--ca", "nowhere.pem")[2]


def test_nobody_answers_and_somebody_who_is_silent(augury, monkeypatch):
    (port,) = free_ports(1)
    code, _, said = augury("jobs", "--address", f"http://127.0.0.1:{port}")
    assert code == 2
    assert "cannot be reached" in said
    assert "refused" in said
    assert augury("jobs", "--address", f"127.0.0.1:{port}")[0] == 2
    monkeypatch.setattr(job_server, "SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        named = f"127.0.0.1:{silent.getsockname()[1]}"
        for address in (f"http://{named}", named):
            code, _, said = augury("jobs", "--address", address)
            assert code == 2
            assert "no answer within 0.2 seconds" in said
    code, _, said = augury("jobs", "--address", f"http://user:{TOKEN}@127.0.0.1:{port}")
    assert code == 2


class Ailing(http.server.BaseHTTPRequestHandler):
    """A proxy behind which the dashboard answers to some paths, and nothing to others."""

    well: tuple[str, ...] = ()
    ill = 502

    def do_GET(self) -> None:
        content = json.dumps({"version": "4", "ray_version": "2.60.0"}).encode()
        self.send_response(200 if self.path in self.well else self.ill)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *words: Any) -> None: ...


@pytest.mark.parametrize(("well", "ill"), [((), 502), (("/api/version",), 502), ((), 400)])
@pytest.mark.parametrize("words", [("jobs",), ("submit",), ("watch", "job", "--once")])
def test_a_proxy_that_does_not_reach_the_dashboard(augury, words, well, ill, monkeypatch):
    monkeypatch.setattr(Ailing, "well", well)
    monkeypatch.setattr(Ailing, "ill", ill)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ailing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        code, out, said = augury(*words, "--address", address)
        server.shutdown()
    assert (code, out) == (1, "")
    assert said.startswith(f"augury: {address}: ")
    assert said.count("\n") == 1


class Silent(http.server.BaseHTTPRequestHandler):
    """A dashboard that takes whoever follows a log, and never says a word more; or does not."""

    takes = True
    readings = 0

    def do_GET(self) -> None:
        if self.path.endswith("/logs/tail"):
            if self.takes:
                key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                accepted = base64.b64encode(sha1(key.encode()).digest()).decode()
                self.send_header("Sec-WebSocket-Accept", accepted)
                self.end_headers()
                self.rfile.read()  # until it is given up
            else:
                self.send_error(403)
            return
        if self.path.endswith("/logs"):
            type(self).readings += 1
        ended = "RUNNING" if self.readings < 3 else "SUCCEEDED"
        job = {"type": "SUBMISSION", "submission_id": "job", "status": ended, "entrypoint": "x"}
        answers = {
            "/api/version": {"version": "4", "ray_version": "2.60.0"},
            "/api/jobs/job": job | {"metadata": {"augury": "search", "run": "/r"}},
            "/api/jobs/job/logs": {"logs": "".join(f"line {n}\n" for n in range(self.readings))},
        }
        content = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None: ...


@pytest.mark.parametrize("takes", [True, False])
def test_a_log_is_followed_where_no_connection_brings_it(augury, monkeypatch, takes):
    monkeypatch.setattr(Silent, "takes", takes)
    monkeypatch.setattr(Silent, "readings", 0)
    monkeypatch.setattr(job_server, "SECONDS_OF_SILENCE", 0.2)
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN", 0.2)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        code, out, said = augury("logs", "job", "--follow", "--address", address)
        server.shutdown()
    assert (code, out.split("\n"), said) == (0, [*(f"line {n}" for n in range(4)), ""], "")


AT = ("--run", "/nowhere/run")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--name", "a b"], "a name begins with a letter or digit"),
        (["--name", "", *AT], "a name begins with a letter or digit"),
        (["--name", "-x"], "a name begins with a letter or digit"),
        ([], "the cluster may grow by itself, and without --run the run would lie on the disk of"),
        (["--run", "runs/mine"], "give the absolute path"),
        (["--run", "memory://run"], "not seen by other processes"),
        (["--run", "s3://key:word@bucket/run"], "keep credentials out of the address"),
        ([*AT, "--set", "teacher.weights=mine.pt"], "teacher.weights: mine.pt would be looked for"),
        (
            [*AT, "--set", "data={name: folder, path: images}"],
            "data.path: images would be looked for",
        ),
        ([*AT, "--set", "search.warm_start=[nothing.json]"], "nothing.json"),
    ],
)
def test_what_cannot_be_a_job(laptop, augury, words, sentence):
    code, out, said = augury("submit", *words)
    assert (code, out) == (2, "")
    assert sentence in said


# --- what goes and what comes, without a cluster --------------------------------------------------


def test_weights_and_data_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("def make(num_classes): ...\n")
    (tmp_path / "nets" / "weights.pt").write_bytes(b"0" * 1000)
    (tmp_path / "unnamed.py").touch()
    folder = tmp_path / "staged"
    folder.mkdir()
    (tmp_path / "quantizers.py").write_text(
        "from trainers.quantization.layer import METHODS\nMine = METHODS['minmax']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # asked for by the config itself
    own = ["teacher.network=nets:make", "student.quantization.quantizer=quantizers:Mine"]
    config = load_config(overrides=[*own, "teacher.weights=/there/w.pt"])
    stage(config, folder)
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert {name for name in names if "dist-info" not in name} == {
        *("search", "trainers", "spaces", "config.yaml", "nets", "quantizers.py")
    }
    assert [path.name for path in (folder / "nets").iterdir()] == ["__init__.py"]
    assert load_config(folder / "config.yaml").cluster.address == "auto"

    # A module with a link to itself, and with more than a disk has, is refused before it is copied.
    (tmp_path / "nets" / "again").symlink_to(tmp_path / "nets", target_is_directory=True)
    with (tmp_path / "nets" / "images.bin").open("wb") as large:
        large.truncate(5 * 2**40)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match=r"more than 16 MiB .*nets/images.bin with 5,242,880.0 MiB"):
        stage(config, folder)
    assert list(folder.iterdir()) == []


def test_a_log_that_comes_in_pieces_and_again():
    log = f"one\n{TOLD}{{}}\ntwo\n{PACKED}AAAA\nthree"
    lines: list[str] = []
    reader = Reader(lines.append)
    for piece in re.findall(r"[\s\S]{1,4}", log[:14]):
        reader.take(piece)
    reader.from_the_start()
    for piece in re.findall(r"[\s\S]{1,5}", log):
        reader.take(piece)
    reader.take_all(log)
    assert lines == ["one", "two", "three"]


def test_lines_for_machines_that_are_torn():
    assert machine_lines(f'{TOLD}{{"a": 1}}\nx\n{TOLD}[2]\n{TOLD}{{"a": 2, "b"') == {"a": 1}


def log_of(*entries: tarfile.TarInfo) -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    content = buffer.getvalue()
    told = json.dumps({"digest": sha256(content).hexdigest()})
    return f"{PACKED}{base64.b64encode(content).decode()}\n{TOLD}{told}\n"


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in {"size": 1, **fields}.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    "evil",
    [
        entry("../run.json"),
        entry("/tmp/run.json"),
        entry("students/../../x.pt"),
        entry("run.json\n"),
        entry("run.json", type=tarfile.SYMTYPE, size=0, linkname="/etc/passwd"),
        entry("sitecustomize.py"),
    ],
    ids=["above", "absolute", "round about", "newline", "link", "unknown"],
)
def test_nothing_is_unpacked_outside_of_its_folder(evil, tmp_path):
    assert [path.name for path in packed(log_of(entry("run.json")), tmp_path / "good")]
    with pytest.raises(UserError, match="that no run has"):
        packed(log_of(entry("config.yaml"), evil), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_whatever_is_packed_is_taken(tmp_path):
    folder = RunFolder(tmp_path)
    folder.students.mkdir()
    (folder.students / "a1-0-3-student-2workers.pt").touch()
    names = [path.relative_to(tmp_path).as_posix() for path in files_of(folder, students=True)]
    assert [name for name in names if not FILES.fullmatch(name)] == []


def test_a_run_that_comes_incomplete(tmp_path):
    log = log_of(entry("run.json"))
    for broken in (log.replace(PACKED, "", 1), log[:60] + log[64:], log.splitlines()[0], ""):
        with pytest.raises(UserError, match="incomplete"):
            packed(broken, tmp_path / "run")


def test_a_run_that_went_on_where_it_was_fetched_to_is_kept(tmp_path):
    log = log_of(entry("run.json"), entry("trials.jsonl", size=9))
    ledger = tmp_path / "trials.jsonl"
    packed(log, tmp_path)
    ledger.write_text("xxxx")  # as a torn line, or a copy of an earlier moment
    packed(log, tmp_path)
    with opened(ledger), pytest.raises(UserError, match="another process is searching"):
        packed(log, tmp_path)
    ledger.write_text("a line of its own\n")
    with pytest.raises(UserError, match="the run went on here, beyond what comes"):
        packed(log, tmp_path)
    assert ledger.read_text() == "a line of its own\n"

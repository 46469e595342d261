"""Exports: by ending, to this disk, and to an S3 server on this machine that checks signatures."""

import csv
import hashlib
import hmac
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, urlsplit

import fsspec
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from search.destinations import export
from search.results import FINISHED, FullLength, Row
from search.table import read_parquet, to_table
from spaces import UserError, scheme

KEY, SECRET = "AKIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG"


class Bucket(BaseHTTPRequestHandler):
    """A bucket of S3: objects in parts, signatures of version 4, as Amazon's API describes them."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    parts: dict[int, bytes]

    def _answer(self, status: int, body: str | bytes = b"", **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refusal(self, body: bytes) -> str | None:
        """The code of S3's error where this request is to be refused."""
        given = dict(
            part.strip().split("=", 1)
            for part in self.headers["Authorization"].split(" ", 1)[1].split(",")
        )
        key, *scope = given["Credential"].split("/")
        names = given["SignedHeaders"].split(";")
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        asked = sorted(
            (quote(k, safe="-_.~"), quote(v, safe="-_.~"))
            for k, v in parse_qsl(query, keep_blank_values=True)
        )
        canonical = [
            *(self.command, path, "&".join(f"{k}={v}" for k, v in asked)),
            *(f"{name}:{' '.join(self.headers[name].split())}" for name in names),
            *("", ";".join(names), self.headers["x-amz-content-sha256"]),
        ]
        digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        to_sign = ["AWS4-HMAC-SHA256", self.headers["x-amz-date"], "/".join(scope), digest]
        secret = f"AWS4{SECRET}".encode()
        for word in (*scope, "\n".join(to_sign)):
            secret = hmac.digest(secret, word.encode(), "sha256")
        if key != KEY or secret.hex() != given["Signature"]:
            return "SignatureDoesNotMatch"
        sent = self.headers["x-amz-content-sha256"]
        if len(sent) == 64 and sent != hashlib.sha256(body).hexdigest():
            return "XAmzContentSHA256Mismatch"
        return None if path.startswith("/bucket/") else "NoSuchBucket"

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] == "chunked":
            body = unchunked(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        streamed = self.headers["x-amz-content-sha256"].startswith("STREAMING-")
        return unchunked(io.BytesIO(body)) if streamed else body

    def _serve(self) -> None:
        body = self._body()
        refusal = self._refusal(body)
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        if refusal:
            self._answer(403, f"<Error><Code>{refusal}</Code><Message>no</Message></Error>")
        elif self.command == "PUT":
            self.parts[int(query["partNumber"])] = body
            self._answer(200, ETag='"part"')
        elif "uploadId" not in query:
            self.parts.clear()
            result = "<UploadId>1</UploadId>"
            self._answer(
                200, f"<InitiateMultipartUploadResult>{result}</InitiateMultipartUploadResult>"
            )
        else:
            self.objects[path] = b"".join(self.parts[number] for number in sorted(self.parts))
            self._answer(200, "<CompleteMultipartUploadResult/>")

    do_POST = do_PUT = _serve  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None: ...


def unchunked(stream: BinaryIO) -> bytes:
    """Chunks are a line with their size in hexadecimal, then they themselves; trailers follow."""
    content = b""
    while size := int(stream.readline().split(b";")[0], 16):
        content += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return content


@pytest.fixture
def bucket(monkeypatch) -> Iterator[dict[str, bytes]]:
    """The objects by their path; the environment has the address and the credentials."""
    handler = type("Empty", (Bucket,), {"objects": {}, "parts": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield handler.objects
        server.shutdown()


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
        ("s3:///p.csv", "Path cannot start with a separator"),
    ],
)
def test_an_address_that_is_none_gets_one_sentence(table, address, sentence, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(UserError, match=sentence) as refused:
        export(table, address)
    assert str(refused.value).startswith(f"{address}: cannot be written: ")
    assert "\n" not in str(refused.value)

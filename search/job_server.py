"""The dashboard of a Ray cluster, whose port is where jobs are given and asked for.

Ray's own client, found by an address or the environment, with limits of time, trust in a
certificate of the user's choice, a token that nothing shows, and errors in a sentence.
"""

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from search.errors import ClusterError
from search.reachability import SECONDS_TO_ANSWER, unanswered
from spaces.errors import UserError

SECONDS_TO_WORK = 60  # for an answer that takes the head some work
SECONDS_TO_PART = 0.1  # with a connection that is over
SECONDS_OF_SILENCE = 60  # of a log that is followed
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKENS = ("AUGURY_TOKEN", "RAY_AUTH_TOKEN")
CERTIFICATES = ("AUGURY_CA", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")

# They tell of every upload and every socket that closes.
for _name in (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env",
):
    logging.getLogger(f"ray.{_name}").setLevel(logging.WARNING)


def job_server(address: str | None = None, ca: Path | None = None) -> "JobServer":
    """The dashboard at `address`, of HTTP or HTTPS, or that of what Ray takes for a cluster.

    Without an address RAY_API_SERVER_ADDRESS and RAY_ADDRESS are asked, then this machine. `ca` is
    a file or folder of certificates that are trusted; else AUGURY_CA and what else is usual. A
    token comes from AUGURY_TOKEN or RAY_AUTH_TOKEN, or is found by Ray itself. Raises UserError
    where nothing answers, is not trusted or does not trust.
    """
    at = _located(address)
    trusted = str(ca) if ca else first_set(CERTIFICATES)
    with _address_is(at):
        try:
            return JobServer(at, headers=_headers(), verify=trusted or True)
        except FileNotFoundError:
            raise UserError(f"{trusted}: there are no certificates here") from None
        except ssl.SSLError as error:
            raise UserError(f"{trusted}: holds no certificates ({error.reason})") from None
        except (ValueError, KeyError, RuntimeError, TypeError):
            raise UserError(f"{at} is not the dashboard of a Ray cluster") from None


class JobServer(JobSubmissionClient):
    """Ray's client, with limits of time and with errors in a sentence."""

    def _do_request(
        self,
        method: str,
        endpoint: str,
        *,
        data: bytes | None = None,
        json_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> requests.Response:
        at = self._address
        patience = SECONDS_TO_ANSWER if endpoint == "/api/version" else SECONDS_TO_WORK
        kwargs.setdefault("timeout", (SECONDS_TO_ANSWER, patience))
        try:
            answer = super()._do_request(method, endpoint, data=data, json_data=json_data, **kwargs)
        except AuthenticationError:
            raise UserError(_no_entry(at)) from None
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"{at}: its certificate is not trusted ({_reason(error)}): name the file of the "
                "authority's certificate with --ca or AUGURY_CA"
            ) from None
        except requests.exceptions.Timeout:
            raise UserError(f"{at}: no answer within {patience} seconds") from None
        except requests.exceptions.RequestException as error:
            raise UserError(f"{at}: cannot be reached: {_reason(error)}") from None
        if endpoint.startswith("/api/jobs/") and answer.status_code >= 400:
            *_, last = answer.text.strip().splitlines() or ["no reason given"]
            if answer.status_code == 404:
                raise UserError(f"{at}: {last}; see augury jobs")
            if "already exists" in answer.text:
                raise UserError("a job of this name is there already: give another --name")
            raise ClusterError(f"{at}: {last}")
        if answer.status_code >= 400 and answer.status_code != 404:  # no package, no dashboard
            raise ClusterError(f"{at}: answers {answer.status_code} ({answer.reason})")
        return answer

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's living nodes, as Ray's state API tells them; none where nobody does."""
        alive = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        with suppress(ClusterError, ValueError, KeyError, TypeError):  # the jobs may do without
            answer = self._do_request("GET", f"/api/v0/nodes?{alive}").json()
            return list(answer["data"]["result"]["result"])
        return []

    async def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]:
        """The log of a job in pieces, until it ends or a connection does.

        Raises TimeoutError where nothing comes for `SECONDS_OF_SILENCE`: a connection can die
        without a word, Ray answers no pings, and its own client would wait for ever.
        """
        limits = aiohttp.ClientWSTimeout(ws_receive=SECONDS_OF_SILENCE, ws_close=1)
        try:
            async with (
                aiohttp.ClientSession(
                    headers=self._headers, timeout=aiohttp.ClientTimeout(total=SECONDS_TO_WORK)
                ) as session,
                session.ws_connect(
                    f"{self._address}/api/jobs/{job_id}/logs/tail",
                    ssl=self._ssl_context or True,
                    timeout=limits,
                ) as connection,
            ):
                async for message in connection:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
        finally:  # TLS ends after its session, which does not wait; the loop is not to end before
            await asyncio.sleep(SECONDS_TO_PART)


def first_set(names: Sequence[str]) -> str | None:
    """The value of the first of these variables of the environment that has one."""
    return next(filter(None, map(os.environ.get, names)), None)


def _located(address: str | None) -> str:
    """The address of the dashboard; a cluster's own is asked for it."""
    named = address or first_set(ADDRESSES) or "http://127.0.0.1:8265"
    if "@" in named:
        raise UserError(f"an address holds no names and passwords: a token goes into {TOKENS[0]}")
    if re.match(r"https?://[^/]", named, re.IGNORECASE):
        return named.rstrip("/")
    if silence := unanswered(named.removeprefix("ray://")):
        raise UserError(f"no Ray cluster at {named!r}: {silence}")
    if "://" not in named and ":" in named:
        _require_no_tls(named)
        if _is_dashboard(named):  # Ray would take it for the address of the cluster's state
            return f"http://{named}"
    with _address_is(named):
        try:
            return str(get_address_for_submission_client(named))
        except Exception as error:  # Ray's, of many kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"no Ray cluster at {named!r}: {reason[0]}") from None


def _is_dashboard(named: str) -> bool:
    """Whether HOST:PORT speaks HTTP, as only the dashboard does, with a token or without one;
    raises UserError where it does not speak at all."""
    try:
        requests.get(f"http://{named}/api/version", timeout=SECONDS_TO_ANSWER)
    except requests.exceptions.Timeout:
        raise UserError(f"{named}: no answer within {SECONDS_TO_ANSWER} seconds") from None
    except requests.exceptions.RequestException:
        return False
    return True


def _require_no_tls(named: str) -> None:
    """Ray would knock for most of a minute at HOST:PORT of a dashboard behind TLS."""
    host, _, port = named.rpartition(":")
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError):  # nothing is said yet, and no token is shown
        knock = socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER)
        with knock, anybody.wrap_socket(knock):
            raise UserError(f"{named} speaks TLS: give its address as https://{named}")


@contextmanager
def _address_is(address: str) -> Iterator[None]:
    """Ray's client believes its environment more than its argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _headers() -> dict[str, str]:
    """With the token of the environment, where there is one, which no error may show."""
    for name in TOKENS:
        if token := os.environ.get(name, "").strip():
            if not re.fullmatch(r"[\x21-\x7e]+", token):
                raise UserError(f"{name}: holds what a token cannot have: blanks or other letters")
            return {"Authorization": f"Bearer {token}"}
    return {}


def _no_entry(address: str) -> str:
    given = next((name for name in TOKENS if os.environ.get(name)), None)
    if given is not None:
        return f"{address}: the token in {given} is not the cluster's"
    return f"{address}: the cluster asks for a token: put it into the environment as {TOKENS[0]}"


def _reason(error: Exception) -> str:
    """What is at the bottom of an error of requests."""
    text = str(error).removesuffix("'))").removesuffix('")').removesuffix(")")
    return re.split(r"(?<=\S): (?=\S)", text)[-1].strip(" '\"()") or type(error).__name__

"""Requests to one MLflow tracking server: kept-alive connections, retries with pauses, and errors that say what to do.

Authentication, certificates and proxies are MLflow's own (``mlflow.utils.rest_utils.http_request``), so every way that
its client can log in works here too. Retrying is ours: a request that may have been carried out although its answer was
lost must be safe to repeat, and the caller says how.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from threading import Semaphore
from typing import Any, Final

# The calls that stay with MLflow's own client (experiments, artifacts) would try for more than four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.targets.mlflow.config import Connection, redacted

log = logging.getLogger(__name__)

PAUSES: Final = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
"""Seconds before a request is sent again, give or take a quarter; the number of entries is the number of retries."""

LONGEST_PAUSE: Final = 120.0
"""Seconds that a server's Retry-After can ask for at most."""

RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_HINTS: Final = {
    401: "Log in: targets.mlflow.token_env, or username_env and password_env, name the variables with the credentials.",
    403: "The server knows you but does not let you do this: ask for edit permission on the experiment.",
    404: "It was deleted meanwhile, or tracking_uri lacks a path prefix: look at the address, then load again.",
    413: "Something before the server limits requests: let them be 1 MB (nginx: client_max_body_size).",
}


class RefusedError(TargetError):
    """The server answered, and the answer is no. ``status`` and ``code`` are the server's."""

    def __init__(self, message: str, *, hint: str, status: int, code: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


class Wire:
    """One tracking server. May be used by several threads at once."""

    def __init__(self, connection: Connection, in_flight: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._connection = connection
        self._slots = _slots(connection.uri, in_flight)
        self._sleep = sleep

    def get(self, call: str, doing: str, query: Mapping[str, str]) -> Any:
        """Return the JSON answer to a GET of ``call``, for example ``runs/get``."""
        return self._request("GET", call, doing, {"params": dict(query)})

    def post(
        self,
        call: str,
        doing: str,
        body: bytes | Mapping[str, Any],
        *,
        done_already: Callable[[], Any | None] | None = None,
    ) -> Any:
        """Return the JSON answer to a POST of a JSON body.

        Sent again if no answer came or the server was in trouble. ``done_already`` is asked before that: what it
        returns, unless None, is the answer, because the first request was carried out after all.
        Raises :class:`RefusedError` if the server says no, TargetUnavailableError if it stays in trouble.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._request("POST", call, doing, {"data": data}, done_already)

    def _request(
        self,
        method: str,
        call: str,
        doing: str,
        content: Mapping[str, Any],
        done_already: Callable[[], Any | None] | None = None,
    ) -> Any:
        for pause in [*PAUSES, None]:
            asked: float | None = None
            try:
                with self._slots:
                    response = http_request(  # type: ignore[no-untyped-call]
                        get_default_host_creds(self._connection.uri),  # type: ignore[no-untyped-call]
                        f"/api/2.0/mlflow/{call}",
                        method,
                        max_retries=0,
                        retry_codes=frozenset(),
                        raise_on_status=False,
                        extra_headers={"Content-Type": "application/json"},
                        **content,
                    )
            except (MlflowException, requests.RequestException) as error:
                if not _lost(error):
                    raise
                trouble = "no answer: " + _cause(error)
            else:
                if response.ok:
                    return _json(response, doing, self._connection.shown)
                status, code, message = _refusal(response)
                if status not in RETRIED and not _met_itself(status, message):
                    raise RefusedError(
                        f"MLflow at {self._connection.shown} refused {doing} with status {status}: {message}.",
                        hint=_HINTS.get(status, "See the server's log for more."),
                        status=status,
                        code=code,
                    )
                trouble = f"status {status}: {message}"
                asked = _retry_after(response)
            if pause is None:
                break
            wait = pause * random.uniform(0.75, 1.25) if asked is None else min(asked, LONGEST_PAUSE)  # noqa: S311
            log.info("MLflow at %s, %s: %s. Again in %.1f s.", self._connection.shown, doing, trouble, wait)
            self._sleep(wait)
            if done_already is not None and (answer := done_already()) is not None:
                return answer
        raise TargetUnavailableError(
            f"MLflow at {self._connection.shown} did not carry out {doing} in {len(PAUSES) + 1} tries, "
            f"the last ended with {trouble}.",
            hint="Look at the server's log; load again when it is well. Finished runs are not loaded twice.",
        )


@cache
def _slots(uri: str, in_flight: int) -> Semaphore:
    """Return what limits requests at once to one server, however many runs are loaded and read back at the time."""
    return Semaphore(in_flight)


def _lost(error: BaseException) -> bool:
    """True if the request may or may not have arrived. MLflow wraps what requests raises."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
            # A certificate that is not trusted stays so.
            return not isinstance(current, requests.exceptions.SSLError)
        current = current.__cause__ or current.__context__
    return False


def _cause(error: BaseException) -> str:
    current = error
    while not isinstance(current, requests.RequestException) and (current.__cause__ or current.__context__):
        current = current.__cause__ or current.__context__ or current
    if isinstance(current, requests.Timeout):
        return "the time was up (MLFLOW_HTTP_REQUEST_TIMEOUT)"
    return f"{type(current).__name__}"


def _refusal(response: requests.Response) -> tuple[int, str, str]:
    """Return status, MLflow's error code or "", and the first line of the message."""
    code, text = "", response.text
    try:
        answer = response.json()
        code, text = str(answer["error_code"]), str(answer["message"])
    except (ValueError, KeyError, TypeError):
        pass
    lines = redacted(text).strip().splitlines()
    return response.status_code, code, (lines[0] if lines else response.reason or "no message")[:300].rstrip(".")


def _met_itself(status: int, message: str) -> bool:
    """True if two requests of ours got in each other's way in the server's database.

    The first points of a metric in two requests at once, or a request beside its own repetition, can both insert one
    row; the database refuses one of them, and MLflow passes that on as a bad request.
    """
    return status == 400 and ("IntegrityError" in message or "UniqueViolation" in message)


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds that the server asks for, given as a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _json(response: requests.Response, doing: str, where: str) -> Any:
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise TargetError(
            f"{where} does not respond like an MLflow server: {doing} returned {redacted(response.text)[:80]!r}.",
            hint="Look at targets.mlflow.tracking_uri; a login page may stand before the server.",
        ) from error

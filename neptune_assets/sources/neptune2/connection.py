"""Calls to a 2.x server over the connection that neptune-client opens, tried again where that can help.

The session, its access tokens and the calls that the server describes are the client's own machinery below its public
functions, as neptune-client 1.14.0.post2, its last version, has it
(``neptune/internal/backends/hosted_neptune_backend.py``). Its retries misread ``Retry-After`` (its first character
only), spin without a pause when a token has expired, and do not cover tables. So requests are built by the client
(bravado, from the swagger documents it fetched) and sent over its session with its tokens, but how often and how fast
is decided here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import requests
from requests.adapters import HTTPAdapter

from neptune_assets.errors import NeptuneAssetsError, SettingsError, SourceError, SourceUnavailableError
from neptune_assets.retries import retry_after
from neptune_assets.sources.live import ApiToken, LiveSource, RateLimiter, RetryBudget, quoted


class CallError(NeptuneAssetsError):
    """One call failed for good, and the server still answers others: what was asked for is missing, the rest goes on.

    ``status`` is the HTTP status; 0 where there was none.
    """

    def __init__(self, message: str, *, hint: str, status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status

    @property
    def not_there(self) -> bool:
        """True if the server says that it does not have what was asked for."""
        return self.status == 404


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turn what goes wrong with an answer of an unexpected shape into a CallError that says what it is of."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CallError(
            f"What the server answers about {what} cannot be understood: {type(error).__name__} {error!s:.200}.",
            hint="Check that the API token names a Neptune 2.x server.",
        ) from error


_NAME: Final = "rfc3987_syntax"


def import_jsonschema_lazily() -> None:
    """Import jsonschema, without the grammar of international addresses, if it is installed and nobody did so before.

    neptune-client imports jsonschema, which imports rfc3987_syntax where that is installed, which compiles a grammar:
    more than all the rest of the client takes. Neptune's documents hold no such addresses. What jsonschema can check
    stays the same: the first check compiles the grammar.
    """
    if {"jsonschema", _NAME} & sys.modules.keys() or find_spec("jsonschema") is None or find_spec(_NAME) is None:
        return
    stand_in = ModuleType(_NAME)
    stand_in.is_valid_syntax = _is_valid_syntax  # type: ignore[attr-defined]
    sys.modules[_NAME] = stand_in
    try:
        import_module("jsonschema")
    finally:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]


def _is_valid_syntax(term: str, value: str) -> bool:
    return bool(import_module(_NAME).is_valid_syntax(term, value))


TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that another try may heal."""
_NAMED: Final = frozenset({"attribute", "projectIdentifier", "experimentId", "hash", "index", "offset"})
"""Parameters that are part of messages."""
_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class TransientError(Exception):
    """A failure that another try may heal; ``pause`` is what the server asked to wait, in seconds."""

    def __init__(self, reason: str, status: int = 0, pause: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.pause = pause


def reason(error: BaseException) -> str:
    """Names of an error and of the innermost one behind it, without texts that could hold secrets."""
    inner = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    return " caused by ".join(dict.fromkeys((type(error).__name__, type(inner).__name__)))


def describe(parameters: Mapping[str, Any]) -> str:
    """The parameters that are part of messages, in parentheses."""
    named = [f"{name} {value!r:.200}" for name, value in parameters.items() if name in _NAMED]
    return f" ({', '.join(named)})" if named else ""


_RETRIES_VARIABLE: Final = "NEPTUNE_RETRIES_TIMEOUT"
_FIRST_CONTACT: Final = 30.0
"""A server that never answered is given up after so many seconds: its address may be wrong."""
_NO_ARTIFACTS: Final = "MissingApiClient"
"""What the client puts in the place of its artifact calls where the server has none."""
_HEADERS: Final = {"X-Neptune-LegacyClient": "false"}


class Connection:
    """One session with one server. Safe to use from many threads."""

    def __init__(self, backend: Any, token: ApiToken, connections: int) -> None:
        """Take the client's backend. Raises SettingsError if it lacks anything, SourceError if the server does."""
        self.token = token
        self.url = token.url
        self.broken: tuple[type[Exception], ...]
        """What is raised where no response arrives."""
        try:
            from bravado.client import construct_request
            from neptune.common.exceptions import NeptuneConnectionLostException

            self.broken = (requests.RequestException, NeptuneConnectionLostException, TimeoutError)
            self._construct: Callable[..., dict[str, Any]] = construct_request
            self._clients = [backend.backend_client, backend.leaderboard_client]
            if backend.artifacts_client.__class__.__name__ != _NO_ARTIFACTS:
                self._clients.append(backend.artifacts_client)
            http_client = backend.leaderboard_client.swagger_spec.http_client
            self._session: requests.Session = http_client.session
            self._apply: Callable[[requests.Request], requests.Request] = http_client.authenticator.apply
            self._auth = http_client.authenticator.auth
            _ = self._auth.token_expires_at
            self.operation("getExperimentAttributes")
        except (AttributeError, ImportError) as error:
            raise _other_client(error) from error
        except CallError as error:
            raise SourceError(error.message, hint="Check that the API token names a Neptune 2.x server.") from error
        # Found out once for each server: the whole environment is searched for it.
        self._environment = lru_cache(maxsize=64)(self._from_environment)
        self._known: dict[tuple[Any, ...], requests.PreparedRequest] = {}
        adapter = HTTPAdapter(pool_maxsize=connections)
        self._session.mount(f"{self.url}/", adapter)

    def operation(self, name: str) -> Any:
        """A call by its name; raises CallError if the server does not describe it."""
        for client in self._clients:
            try:
                return getattr(client.api, name).operation
            except AttributeError:
                continue
        raise CallError(f"The server at {self.url} offers no call {name}.", hint="It cannot be asked for that.")

    def send(
        self,
        name: str,
        headers: Mapping[str, str],
        parameters: Mapping[str, Any],
        url: str | None,
        timeout: tuple[float, float],
    ) -> requests.Response:
        """Send one request and return the answer, its body not yet read; statuses are the caller's to judge."""
        if url is None:
            prepared = self._repeated(name, headers, parameters) or self._prepared(name, headers, parameters)
        else:
            request = requests.Request("GET", url, headers={**_HEADERS, **headers})
            if _origin(url) == _origin(self.url):
                # The token is nobody else's business, even if the server sends us there.
                request = self._authorised(request)
            prepared = self._session.prepare_request(request)
        return self._session.send(prepared, timeout=timeout, **self._environment(_origin(prepared.url or self.url)))

    def _prepared(
        self, name: str, headers: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> requests.PreparedRequest:
        """A request as the client makes it; what only differs in its query from another is kept for the next."""
        arguments = self._construct(self.operation(name), {"headers": {**_HEADERS, **headers}}, **parameters)
        # The client writes numbers as text.
        written = {name: str(value) for name, value in parameters.items()}
        if _plain(parameters) and arguments.get("params") == written and arguments["method"] == "GET":
            bare = requests.Request("GET", arguments["url"], headers=arguments["headers"])
            self._known[name, *headers.items(), *parameters] = self._session.prepare_request(bare)
        return self._session.prepare_request(self._authorised(requests.Request(**arguments)))

    def _repeated(
        self, name: str, headers: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> requests.PreparedRequest | None:
        """A request like an earlier one with another query, in a fraction of the time; None for the first one."""
        known = self._known.get((name, *headers.items(), *parameters))
        if known is None or not _plain(parameters) or len(self._session.cookies):
            return None
        prepared = known.copy()
        prepared.url = f"{known.url}?{urlencode(parameters)}"
        prepared.prepare_auth(self._authorised(requests.Request()).auth)
        return prepared

    def refresh(self) -> None:
        """Have the next request fetch a new access token first."""
        self._auth.token_expires_at = 0

    def _from_environment(self, origin: tuple[str, str]) -> Mapping[str, Any]:
        """Certificates and proxies as requests.get() would take them, which the client's own downloads leave out."""
        scheme, place = origin
        return self._session.merge_environment_settings(f"{scheme}://{place}/", {}, True, None, None)

    def _authorised(self, request: requests.Request) -> requests.Request:
        from neptune.common.exceptions import NeptuneInvalidApiTokenException, Unauthorized

        try:
            return self._apply(request)
        except (NeptuneInvalidApiTokenException, Unauthorized) as error:
            raise self.token.rejected() from error


def _plain(parameters: Mapping[str, Any]) -> bool:
    return all(type(value) in (str, int) for value in parameters.values())


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _other_client(error: Exception) -> SettingsError:
    return SettingsError(
        f"The installed neptune-client is not version 1.14.0.post2, which is needed to read a server: {error}.",
        hint='Install it: pip install "neptune-assets[neptune2]".',
    )


def open_connection(token: ApiToken, settings: LiveSource) -> Connection:
    """Open a session with the server that the token names.

    Raises SourceError if it does not accept the token, SourceUnavailableError if it does not answer, and SettingsError
    if the installed neptune-client is not the version that this was made for.
    """
    import_client(settings)
    from neptune.common.exceptions import (
        Forbidden,
        NeptuneConnectionLostException,
        NeptuneException,
        NeptuneInvalidApiTokenException,
        NeptuneSSLVerificationError,
        Unauthorized,
    )

    try:
        from neptune.internal.backends.hosted_neptune_backend import HostedNeptuneBackend
        from neptune.internal.credentials import Credentials
    except ImportError as error:
        raise _other_client(error) from error
    try:
        backend = HostedNeptuneBackend(Credentials.from_token(token.text), proxies=None)
        return Connection(backend, token, settings.concurrency)
    except (NeptuneInvalidApiTokenException, Unauthorized, Forbidden) as error:
        raise token.rejected() from error
    except NeptuneSSLVerificationError as error:
        raise SourceError(
            f"The certificate of {token.url} cannot be verified.",
            hint="Set REQUESTS_CA_BUNDLE to the certificate, or NEPTUNE_ALLOW_SELF_SIGNED_CERTIFICATE=1 to trust any.",
        ) from error
    except (NeptuneConnectionLostException, requests.RequestException) as error:
        raise SourceUnavailableError(
            f"No session could be opened with {token.url}: {type(error.__cause__ or error).__name__}.",
            hint="Check that the server runs and that the API token names its address.",
        ) from error
    except NeptuneException as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SourceError(
            f"neptune-client cannot open a session with {token.url}: {first}.",
            hint="Check the address in the API token, and the client's version.",
        ) from error


def import_client(settings: LiveSource) -> None:
    """Import the client with a limit on its own retries, which it reads when it is imported and never again.

    They only count while a session is opened and when an access token is renewed; all else is retried by us. A client
    that something else imported before keeps its 60 seconds, or what the variable was then.
    """
    if "neptune" not in sys.modules:
        os.environ.setdefault(_RETRIES_VARIABLE, str(int(min(settings.retry_seconds, _FIRST_CONTACT))))
    import_jsonschema_lazily()
    try:
        import neptune  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"neptune-client cannot be imported: {error}.", hint='Install it: pip install "neptune-assets[neptune2]".'
        ) from error


_CONNECT_SECONDS: Final = 30.0
_BLOCK: Final = 1 << 20


class Calls:
    """Makes calls by the names of the 2.x protocol, over the client's connection. Safe to use from many threads."""

    def __init__(self, connection: Connection, settings: LiveSource) -> None:
        self._connection = connection
        self._timeout = (min(_CONNECT_SECONDS, settings.request_seconds), settings.request_seconds)
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._limiter = RateLimiter(settings.requests_per_second)
        self._seconds = settings.retry_seconds
        self._lock = threading.Lock()
        self.count = 0
        """Requests sent so far."""

    def json(
        self, operation: str, headers: Mapping[str, str] | None = None, *, tries: int | None = None, **parameters: Any
    ) -> Any:
        """Make a call and return the JSON object it answers. With ``tries`` it is given up after so many.

        Raises CallError if it fails for good, SourceUnavailableError if the server no longer answers, SourceError if
        the token is refused.
        """
        return self._retried(
            operation, parameters, lambda: self._json(operation, headers or {}, parameters), tries=tries
        )

    def download(
        self, operation: str, sink: BinaryIO, size: int | None = None, *, most: int | None = None, **parameters: Any
    ) -> None:
        """Write the bytes that a call answers into a file, from its start; one that is cut short is tried again.

        ``size`` is how many there must be, if that is known, and ``most`` how many there may be: no more are read.
        Raises as :meth:`json` does.
        """
        most = size if most is None else most
        self._retried(operation, parameters, lambda: self._download(operation, None, sink, size, most, parameters))

    def download_url(self, url: str, sink: BinaryIO, most: int) -> None:
        """Write the bytes behind an address that the server gave out into a file, as :meth:`download` does."""
        self._retried("the prepared archive", {}, lambda: self._download("", url, sink, None, most, {}))

    def _retried(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        attempt: Callable[[], _Answer],
        *,
        tries: int | None = None,
    ) -> _Answer:
        """Call ``attempt`` until it raises no TransientError, time is up, or it was tried so many times."""
        budget = RetryBudget(self._seconds, to_the_end=True)
        while True:
            try:
                return attempt()
            except TransientError as error:
                failure = error
            given_up = tries is not None and budget.count >= tries
            pause = None if given_up else budget.pause(failure.pause)
            if pause is None:
                raise self._given_up(f"{operation}{describe(parameters)}", failure, budget.count)
            _LOG.info("%s failed (%s); trying again in %.1f s.", operation, failure, pause)
            time.sleep(pause)

    def _given_up(self, what: str, failure: TransientError, tries: int) -> CallError | SourceUnavailableError:
        """The error of a call that failed for good: another one shows whether the server is down."""
        if self._alive():
            return CallError(
                f"The server failed {tries} times to answer {what}: {failure}.",
                hint="Materialize again later; what else the server holds was read.",
                status=failure.status,
            )
        return SourceUnavailableError(
            f"The server at {self._connection.url} does not answer: {failure} (after {tries} tries of {what}).",
            hint="Check that it runs and can be reached, then materialize again; finished runs are kept.",
        )

    def _alive(self) -> bool:
        try:
            with self._send("getProject", {}, {"projectIdentifier": "-"}) as response:
                return response.status_code not in TRANSIENT
        except TransientError:
            return False

    @contextmanager
    def _send(
        self, operation: str, headers: Mapping[str, str], parameters: Mapping[str, Any], url: str | None = None
    ) -> Iterator[requests.Response]:
        """Send one request; the response is open inside the block and counts as one in progress."""
        with self._slots:
            self._limiter.wait()
            with self._lock:
                self.count += 1
            try:
                with self._connection.send(operation, headers, parameters, url, self._timeout) as response:
                    yield response
            except self._connection.broken as error:
                raise TransientError(reason(error)) from error
            except UnicodeError as error:
                raise CallError(
                    f"No request can hold {operation}{describe(parameters)}.", hint="The server gave a broken name."
                ) from error

    def _json(self, operation: str, headers: Mapping[str, str], parameters: Mapping[str, Any]) -> Any:
        with self._send(operation, headers, parameters) as response:
            self._check(response, operation, parameters)
            content = response.content
            status = response.status_code
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise TransientError("it answered something other than JSON", status) from None
        if not isinstance(answer, dict):
            raise TransientError(f"it answered something other than a JSON object, {answer!r:.80}", status)
        return answer

    def _download(
        self,
        operation: str,
        url: str | None,
        sink: BinaryIO,
        size: int | None,
        most: int | None,
        parameters: Mapping[str, Any],
    ) -> None:
        sink.seek(0)
        sink.truncate()
        with self._send(operation, {"Accept": "*/*"}, parameters, url) as response:
            self._check(response, operation, parameters)
            for block in response.iter_content(_BLOCK):
                if most is not None and sink.tell() + len(block) > most:
                    # It could go on until the disk is full; another try would read as much again.
                    raise CallError(
                        f"The server sends more than the {most:,} bytes that there can be.",
                        hint="Look at the file on the server.",
                        status=response.status_code,
                    )
                sink.write(block)
            status = response.status_code
        got = sink.tell()
        if size is not None and got != size:
            raise TransientError(f"it sent {got:,} of {size:,} bytes", status)

    def _check(self, response: requests.Response, operation: str, parameters: Mapping[str, Any]) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        if status in TRANSIENT:
            raise TransientError(f"HTTP {status}", status, retry_after(response.headers.get("Retry-After")))
        body = response.content
        if status == 401 and b"AUTHORIZATION_TOKEN_EXPIRED" in body:
            self._connection.refresh()
            raise TransientError("the access token had expired", status)
        if status == 401:
            raise self._connection.token.rejected()
        raise CallError(
            f"The server refused {operation}{describe(parameters)}: HTTP {status}{quoted(body)}.",
            hint="Check that it still exists and that the token's user may see it.",
            status=status,
        )

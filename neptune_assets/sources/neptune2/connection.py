"""The connection that neptune-client opens: its session, its access tokens, and the calls the server describes.

This is the client's own machinery below its public functions, as neptune-client 1.14.0.post2, its last version, has it
(``neptune/internal/backends/hosted_neptune_backend.py``). What is used of it is checked when it is opened.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import requests
from requests.adapters import HTTPAdapter

from neptune_assets.errors import SettingsError, SourceError, SourceUnavailableError
from neptune_assets.sources.live import ApiToken, LiveSource
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.lazy_grammar import import_jsonschema

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
        """What is raised where an answer does not come."""
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
    that something else imported before keeps its 60 seconds, or what the variable said then.
    """
    if "neptune" not in sys.modules:
        os.environ.setdefault(_RETRIES_VARIABLE, str(int(min(settings.retry_seconds, _FIRST_CONTACT))))
    import_jsonschema()
    try:
        import neptune  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"neptune-client cannot be imported: {error}.", hint='Install it: pip install "neptune-assets[neptune2]".'
        ) from error

"""One MLflow: where it is, what its own client says of it, and its errors in our words.

MLflow is imported here and in the modules beside it, which nobody imports before a load begins.
"""

from __future__ import annotations

import base64
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# The calls that stay with MLflow's own client would try for more than four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore as RunStore
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.utils.credentials import get_default_host_creds
from sqlalchemy.engine import URL, make_url

from neptune_assets.errors import SettingsError, TargetError, TargetUnavailableError
from neptune_assets.lake.storage import Storage
from neptune_assets.plugins import check_installed
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.mlflow.settings import MlflowSettings

log = logging.getLogger(__name__)

DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
"""Dialects of tracking URIs that are databases."""
_CONNECT_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the settings say a server is asked with; what they leave out is MLflow's own. Never shown."""

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def host_creds(self, url: str) -> Any:
        """Return what MLflow signs requests to ``url`` with.

        MLflow's own variables and file hold where the settings name nothing. Nothing is put into them: they would be
        those of every other target of this process too.
        """
        creds: Any = get_default_host_creds(url)  # type: ignore[no-untyped-call]
        if self.token is not None:
            creds.username, creds.password, creds.token = None, None, self.token
        elif self.username is not None or self.password is not None:
            creds.username, creds.password = self.username or creds.username, self.password or creds.password
            creds.token = None
        return creds


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach one MLflow. ``uri`` may hold a password and is never shown; ``display_url`` is for people."""

    uri: str = field(repr=False)
    display_url: str
    dialect: str | None
    """A member of :data:`DATABASES`, or None for a tracking server."""
    database_file: Path | None
    artifact_root: str | None
    """Directory or URL under which new experiments keep artifacts; None leaves it to the server."""
    credentials: Credentials = field(default=Credentials(), repr=False)

    @property
    def case_sensitive(self) -> bool:
        """True if keys that differ only in case are surely two keys there."""
        return self.dialect in {"sqlite", "postgresql"}

    def redacted(self, text: str) -> str:
        """Return a text without credentials: servers and proxies may repeat what they were sent."""
        creds = self.credentials.host_creds(self.uri)
        basic = f"{creds.username}:{creds.password}".encode() if creds.password else b""
        for hidden in filter(None, (base64.b64encode(basic).decode("ascii"), creds.password, creds.token)):
            text = text.replace(hidden, "***")
        return text

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn what MLflow, its database and its server raise while ``doing`` something into TargetErrors."""
        try:
            yield
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.RequestException) as error:
            # Dagster keeps the text of the cause as well.
            cause = error if self.redacted(str(error)) == str(error) else None
            if _is_transient(error):
                raise TargetUnavailableError(
                    f"MLflow at {self.display_url} did not answer while {doing}: {self.first_line(error)}.",
                    hint="Check that it is up, then load again; finished runs are not loaded twice.",
                ) from cause
            raise TargetError(
                f"MLflow at {self.display_url} refused {doing}: {self.first_line(error)}.",
                hint="See MLflow's own log for more.",
            ) from cause

    def first_line(self, error: BaseException) -> str:
        """Return the first line of an error's text, without credentials."""
        text = self.redacted(str(error).strip())
        return (text.splitlines()[0] if text else type(error).__name__)[:500].rstrip(".")


def connection(settings: MlflowSettings, lake: LakeSettings) -> Connection:
    """Resolve the settings. Raises SettingsError for a URI that cannot hold what a load writes."""
    uri = settings.tracking_uri
    if uri is None:
        storage = Storage(lake.root, lake.storage)
        if not storage.local:
            raise SettingsError(
                "targets.mlflow has no tracking_uri, and a SQLite file cannot be kept beside a remote lake.",
                hint="Set targets.mlflow.tracking_uri.",
            )
        uri = f"sqlite:///{storage.root}/mlflow.db"
    scheme = uri.partition(":")[0]
    dialect = scheme.partition("+")[0]
    if dialect == "postgres":
        dialect = "postgresql"
    if dialect in DATABASES and "://" in uri:
        return _database(uri, dialect, settings)
    if scheme in {"http", "https"}:
        credentials = _credentials(settings, urlsplit(uri))
        # Errors of MLflow's client show the address: it must not hold the password.
        uri = _without_user(uri)
        return Connection(uri.rstrip("/"), uri, None, None, settings.artifact_root, credentials)
    raise SettingsError(
        f"targets.mlflow.tracking_uri {_without_user(uri)!r} is neither a database nor a server.",
        hint="Use sqlite:///file.db, postgresql://..., or http(s)://...; directories would keep points doubled.",
    )


def _check_postgres(url: URL, *, direct: bool) -> None:
    """Raise SettingsError if what speaks to PostgreSQL is not installed."""
    try:
        url.get_dialect().import_dbapi()
    except ImportError as error:
        raise SettingsError(
            f"targets.mlflow.tracking_uri needs {error.name}, which is not installed.",
            hint='Write postgresql+psycopg://... and run: pip install "neptune-assets[postgres]"',
        ) from error
    if direct:
        check_installed("Writing straight into PostgreSQL", ("adbc-driver-postgresql",), "neptune-assets[postgres]")


def _database(uri: str, dialect: str, settings: MlflowSettings) -> Connection:
    url = make_url(uri)
    shown = url.render_as_string()
    if settings.username_env is not None:
        url = url.set(username=secret(settings.username_env, "username_env"))
    if settings.password_env is not None:
        url = url.set(password=secret(settings.password_env, "password_env"))
    if dialect == "postgresql" and "connect_timeout" not in url.query:
        # Whatever listens there may never answer, and PostgreSQL's own library waits for ever.
        url = url.update_query_dict({"connect_timeout": str(_CONNECT_SECONDS)})
    if dialect == "postgresql":
        _check_postgres(url, direct=settings.direct)
    file: Path | None = None
    root = settings.artifact_root
    if dialect == "sqlite":
        if not url.database or url.database == ":memory:":
            raise SettingsError(
                "targets.mlflow.tracking_uri is a SQLite database in memory, which nobody else would ever see.",
                hint="Write sqlite:///relative/or//absolute/path/mlflow.db.",
            )
        file = Path(url.database).absolute()
        root = root or f"{file.parent}/mlartifacts"
    elif root is None:
        raise SettingsError(
            f"targets.mlflow.artifact_root is not set, and a {dialect} database does not say where artifacts go.",
            hint="Set artifact_root to what the server was started with (--default-artifact-root).",
        )
    return Connection(url.render_as_string(hide_password=False), shown, dialect, file, root)


def secret(variable: str, setting: str) -> str:
    """Return the value of an environment variable. Raises SettingsError if it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise SettingsError(
            f"Environment variable {variable}, which targets.mlflow.{setting} names, is not set.",
            hint="Set it, or take it out of the settings.",
        )
    return value


def _credentials(settings: MlflowSettings, address: SplitResult) -> Credentials:
    """Return the credentials that the settings name, else those in the address."""
    username, password, token = (
        None if variable is None else secret(variable, setting)
        for setting, variable in (
            ("username_env", settings.username_env),
            ("password_env", settings.password_env),
            ("token_env", settings.token_env),
        )
    )
    if address.username is not None and settings.username_env is None:
        username, password = unquote(address.username), password or unquote(address.password or "")
    return Credentials(username, password, token)


def _without_user(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


TRANSIENT_STATUS: Final = {429, 502, 503, 504}


class Client(MlflowClient):
    """MLflow's own client on one connection: signs requests with its credentials, and creates a missing database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        with self._opening():
            super().__init__(tracking_uri=connection.uri)
            if connection.dialect is None:
                self._tracking_client = _ServerRuns(connection)
            else:
                # The store is opened by the first call only.
                self.search_experiments(max_results=1)

    def release(self) -> None:
        """Close what MLflow keeps open of a database, so that nothing of it is open in this process."""
        engine = getattr(self._tracking_client.store, "engine", None)
        if engine is not None:
            engine.dispose()

    def _get_registry_client(self) -> ModelRegistryClient:
        if self._connection.dialect is None:
            return _ServerRegistry(self._connection)
        return super()._get_registry_client()  # type: ignore[no-untyped-call, no-any-return]

    @contextmanager
    def _opening(self) -> Iterator[None]:
        file = self._connection.database_file
        if file is None:
            with self._connection.errors("opening it"):
                yield
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with _migrating(file):
            if not file.exists():
                log.info("Creating the MLflow database %s: running schema migrations, up to 30 s.", file)
            with self._connection.errors("opening it (an older database needs `mlflow db upgrade`)"):
                yield


class _ServerRuns(TrackingServiceClient):
    """MLflow's client of a server's runs, with credentials of its own; MLflow shares stores by their address."""

    def __init__(self, connection: Connection) -> None:
        self._store = RunStore(  # type: ignore[no-untyped-call]
            partial(connection.credentials.host_creds, connection.uri)
        )
        super().__init__(connection.uri)  # type: ignore[no-untyped-call]

    @property
    def store(self) -> RunStore:
        return self._store


class _ServerRegistry(ModelRegistryClient):
    """MLflow's client of a server's registry, with credentials of its own."""

    def __init__(self, connection: Connection) -> None:
        self._store = RegistryStore(  # type: ignore[no-untyped-call]
            partial(connection.credentials.host_creds, connection.uri)
        )
        super().__init__(connection.uri, connection.uri)  # type: ignore[no-untyped-call]

    @property
    def store(self) -> RegistryStore:
        return self._store


@contextmanager
def _migrating(file: Path) -> Iterator[None]:
    """Let one process at a time open a SQLite database that may still have to be created."""
    descriptor = os.open(f"{file}.opening", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_transient(error: BaseException) -> bool:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(
            current,
            requests.ConnectionError
            | requests.Timeout
            | sqlalchemy.exc.OperationalError
            | ConnectionError
            | TimeoutError,
        ):
            return not _is_outdated(current)
        if isinstance(current, MlflowException):
            status: int = current.get_http_status_code()  # type: ignore[no-untyped-call]
            if status in TRANSIENT_STATUS:
                return True
        current = current.__cause__ or current.__context__
    text = str(error)
    return "Max retries exceeded" in text or "Connection refused" in text or "database is locked" in text


def _is_outdated(error: BaseException) -> bool:
    text = str(error)
    return "no such table" in text or "no such column" in text

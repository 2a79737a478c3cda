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
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# The calls that stay with MLflow's own client would try for more than four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from neptune_assets.errors import SettingsError, TargetError, TargetUnavailableError
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.storage import Storage
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.mlflow.settings import MlflowSettings

log = logging.getLogger(__name__)

DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
"""Dialects of tracking URIs that are databases."""
_CONNECT_SECONDS: Final = 30


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

    @property
    def case_sensitive(self) -> bool:
        """True if keys that differ only in case are surely two keys there."""
        return self.dialect in {"sqlite", "postgresql"}


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
        _export_credentials(settings, urlsplit(uri))
        # Errors of MLflow's client show the address: it must not hold the password.
        uri = _without_user(uri)
        return Connection(uri.rstrip("/"), uri, None, None, settings.artifact_root)
    raise SettingsError(
        f"targets.mlflow.tracking_uri {_without_user(uri)!r} is neither a database nor a server.",
        hint="Use sqlite:///file.db, postgresql://..., or http(s)://...; directories would keep points doubled.",
    )


def _database(uri: str, dialect: str, settings: MlflowSettings) -> Connection:
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    shown = url.render_as_string()
    if settings.username_env is not None:
        url = url.set(username=secret(settings.username_env, "username_env"))
    if settings.password_env is not None:
        url = url.set(password=secret(settings.password_env, "password_env"))
    if dialect == "postgresql" and "connect_timeout" not in url.query:
        # Whatever listens there may never answer, and PostgreSQL's own library waits for ever.
        url = url.update_query_dict({"connect_timeout": str(_CONNECT_SECONDS)})
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


def _export_credentials(settings: MlflowSettings, address: SplitResult) -> None:
    """Hand credentials to MLflow's client, which only takes them from its own environment variables."""
    if address.username is not None and settings.username_env is None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(address.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(address.password or "")
    for setting, variable, name in (
        ("username_env", settings.username_env, "MLFLOW_TRACKING_USERNAME"),
        ("password_env", settings.password_env, "MLFLOW_TRACKING_PASSWORD"),
        ("token_env", settings.token_env, "MLFLOW_TRACKING_TOKEN"),
    ):
        if variable is not None:
            os.environ[name] = secret(variable, setting)


def redacted(text: str) -> str:
    """Return a server's or client's text without the credentials that MLflow's client holds.

    Servers and proxies may repeat in an error what they were sent.
    """
    user, password, token = (
        os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD", "TOKEN")
    )
    basic = base64.b64encode(f"{user}:{password}".encode()).decode("ascii") if password else ""
    for hidden in filter(None, (basic, password, token)):
        text = text.replace(hidden, "***")
    return text


def _without_user(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


_TRANSIENT_STATUS = {429, 502, 503, 504}


@contextmanager
def mlflow_errors(doing: str, where: str) -> Iterator[None]:
    """Turn what MLflow, its database and its server raise while ``doing`` something into TargetErrors."""
    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.RequestException) as error:
        # Dagster keeps the text of the cause as well.
        cause = error if redacted(str(error)) == str(error) else None
        if _is_transient(error):
            raise TargetUnavailableError(
                f"MLflow at {where} did not answer while {doing}: {_first_line(error)}.",
                hint="Check that the server or database is up, then load again; finished runs are not loaded twice.",
            ) from cause
        raise TargetError(
            f"MLflow at {where} refused {doing}: {_first_line(error)}.", hint="See MLflow's own log for more."
        ) from cause


class Client:
    """One connection through MLflow's public client."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._experiments: dict[str, tuple[str, str]] = {}

    @cached_property
    def api(self) -> MlflowClient:
        """MLflow's client; creating it for a new database runs all its migrations."""
        file = self.connection.database_file
        if file is None:
            with mlflow_errors("opening it", self.connection.display_url):
                return MlflowClient(tracking_uri=self.connection.uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _migrating(file):
            if not file.exists():
                log.info("Creating the MLflow database %s: its migrations take up to half a minute.", file)
            with mlflow_errors("opening it (an older database needs `mlflow db upgrade`)", self.connection.display_url):
                client = MlflowClient(tracking_uri=self.connection.uri)
                # The store is opened by the first call only.
                client.search_experiments(max_results=1)
                return client

    def check(self) -> None:
        """Raise TargetUnavailableError or TargetError unless experiments can be listed."""
        if self.connection.dialect is None:
            self._ping()
        with mlflow_errors("listing experiments", self.connection.display_url):
            self.api.search_experiments(max_results=1)

    def release(self) -> None:
        """Close what MLflow keeps open of a database, so that nothing of it is open in this process."""
        if "api" in self.__dict__:
            engine = getattr(self.__dict__.pop("api")._tracking_client.store, "engine", None)
            if engine is not None:
                engine.dispose()

    def experiment(self, name: str) -> tuple[str, str]:
        """Return (id, artifact location) of the experiment, created if it is missing."""
        known = self._experiments.get(name)
        if known is not None:
            return known
        with mlflow_errors(f"looking for experiment {name!r}", self.connection.display_url):
            found = self.api.get_experiment_by_name(name)
            if found is None:
                root = self.connection.artifact_root
                location = f"{root.rstrip('/')}/{safe_name(name)}" if root else None
                try:
                    found = self.api.get_experiment(self.api.create_experiment(name, artifact_location=location))
                except MlflowException:
                    # Another load created it at the same moment.
                    found = self.api.get_experiment_by_name(name)
                    if found is None:
                        raise
        if found.lifecycle_stage != "active":
            raise TargetError(
                f"MLflow experiment {name!r} is deleted.",
                hint=f"Restore it (`mlflow experiments restore -x {found.experiment_id}`) or set experiment_prefix.",
            )
        self._experiments[name] = (str(found.experiment_id), str(found.artifact_location))
        return self._experiments[name]

    def experiment_ids(self) -> list[str]:
        """Return the ids of all experiments that are not deleted."""
        ids: list[str] = []
        token: str | None = None
        with mlflow_errors("listing experiments", self.connection.display_url):
            while True:
                page = self.api.search_experiments(view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token)
                ids += [str(item.experiment_id) for item in page]
                token = page.token
                if not token:
                    return ids

    def _ping(self) -> None:
        """Ask the server for a sign of life without MLflow's minutes of retries."""
        try:
            response = requests.get(f"{self.connection.uri}/health", timeout=15)
        except requests.RequestException as error:
            raise TargetUnavailableError(
                f"No MLflow server answers at {self.connection.display_url}: {_first_line(error)}.",
                hint="Start it, or correct targets.mlflow.tracking_uri.",
            ) from error
        if response.status_code in _TRANSIENT_STATUS:
            raise TargetUnavailableError(
                f"MLflow at {self.connection.display_url} answers with status {response.status_code}.",
                hint="Wait until the server is ready, then load again.",
            )


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
            if status in _TRANSIENT_STATUS:
                return True
        current = current.__cause__ or current.__context__
    text = str(error)
    return "Max retries exceeded" in text or "Connection refused" in text or "database is locked" in text


def _is_outdated(error: BaseException) -> bool:
    text = str(error)
    return "no such table" in text or "no such column" in text


def _first_line(error: BaseException) -> str:
    text = redacted(str(error).strip())
    return (text.splitlines()[0] if text else type(error).__name__)[:500].rstrip(".")

"""MLflow's own client: reachable or not, schema revision, experiments, and errors in our words.

MLflow is imported here and in the modules beside it, which nobody imports before a load begins.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.lake.layout import safe_name
from neptune_assets.targets.mlflow.config import Connection, redacted

log = logging.getLogger(__name__)

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
            with mlflow_errors("opening it", self.connection.shown):
                return MlflowClient(tracking_uri=self.connection.uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _migrating(file):
            if not file.exists():
                log.info("Creating the MLflow database %s: its migrations take up to half a minute.", file)
            with mlflow_errors("opening it (an older database needs `mlflow db upgrade`)", self.connection.shown):
                client = MlflowClient(tracking_uri=self.connection.uri)
                # The store is opened by the first call only.
                client.search_experiments(max_results=1)
                return client

    def check(self) -> None:
        """Raise TargetUnavailableError or TargetError unless experiments can be listed."""
        if self.connection.dialect is None:
            self._ping()
        with mlflow_errors("listing experiments", self.connection.shown):
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
        with mlflow_errors(f"looking for experiment {name!r}", self.connection.shown):
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
        with mlflow_errors("listing experiments", self.connection.shown):
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
                f"No MLflow server answers at {self.connection.shown}: {_first_line(error)}.",
                hint="Start it, or correct targets.mlflow.tracking_uri.",
            ) from error
        if response.status_code in _TRANSIENT_STATUS:
            raise TargetUnavailableError(
                f"MLflow at {self.connection.shown} answers with status {response.status_code}.",
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

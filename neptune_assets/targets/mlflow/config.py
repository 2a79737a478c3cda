"""From settings to a tracking URI: which kind it is, where artifacts go, secrets from the environment."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from neptune_assets.errors import SettingsError
from neptune_assets.lake.storage import Storage
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.mlflow.settings import MlflowSettings

DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")
"""Dialects of tracking URIs that are databases."""
_CONNECT_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach one MLflow. ``uri`` may hold a password and is never shown; ``shown`` is for people."""

    uri: str = field(repr=False)
    shown: str
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
                "targets.mlflow has no tracking_uri, and a SQLite file cannot lie beside a remote lake.",
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

"""What settings are made of: the base of their models, and kinds of text that are checked when they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, overload

from pydantic import AfterValidator, BaseModel, ConfigDict


class Model(BaseModel):
    """Base of all settings: an unknown name is an error, never ignored."""

    model_config = ConfigDict(extra="forbid")


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _moment(value: str) -> str:
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"{value!r} is not an ISO 8601 date or time, like 2025-06-30 or 2025-06-30T12:00:00Z"
        ) from None
    if len(value) > len("2025-06-30") and moment.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; write 2025-06-30T12:00:00Z or +02:00 at the end")
    return value


def _environment_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("this is the name of an environment variable, not the secret itself")
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
Moment = Annotated[str, AfterValidator(_moment)]
EnvironmentName = Annotated[str, AfterValidator(_environment_name)]


@overload
def anchored_path(path: str, root: Path) -> str: ...
@overload
def anchored_path(path: None, root: Path) -> None: ...
@overload
def anchored_path(path: str | None, root: Path) -> str | None: ...
def anchored_path(path: str | None, root: Path) -> str | None:
    """Return ``path``, taken from ``root`` if it is relative; URLs and None are returned as they are."""
    if path is None or "://" in path:
        return path
    return str((root / Path(path).expanduser()).resolve())

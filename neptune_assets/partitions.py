"""Project keys: one Neptune project, ``workspace/project``, is one partition."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from neptune_assets.errors import SettingsError

_KEY: Final = re.compile(r"[^/\x00-\x1f\x7f]+/[^/\x00-\x1f\x7f]+")
# Dagster reads these as lists and ranges of partition keys on its command line.
_RESERVED: Final = ("...", ",", "[", "]")


def validate_project_key(key: str) -> str:
    """Return ``key`` unchanged if it can name a project and a partition.

    Raises :class:`~neptune_assets.errors.SettingsError` for anything else, so that no name taken from input can
    leave its directory or be read as several partitions.
    """
    if not _KEY.fullmatch(key) or any(part in {".", ".."} for part in key.split("/")):
        raise SettingsError(
            f"{key!r} is not a valid project name.",
            hint="Write it as 'workspace/project', with one slash and no control characters.",
        )
    for token in _RESERVED:
        if token in key:
            raise SettingsError(
                f"Project {key!r} holds {token!r}, which Dagster reserves in partition keys.",
                hint="Leave the project out with filters.projects.exclude, or rename it in the source.",
            )
    return key


def project_keys(keys: Iterable[str]) -> list[str]:
    """Return the valid, distinct project keys in sorted order."""
    return sorted({validate_project_key(key) for key in keys})

"""Git information of a run: one attribute for 2.x clients, several plain ones in the store, named as in neptune-scale.

So the lake needs no type for it, queries can compare a branch, and 3.x clients see what 2.x clients logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from neptune_assets.schema import AttributeType

GIT: Final = "source_code/git"
"""Where a run's git information is, as one attribute or as the ones below it."""

_COMMIT: Final = {
    "commitId": "commit/commit_id",
    "message": "commit/message",
    "authorName": "commit/author_name",
    "authorEmail": "commit/author_email",
}
_DATE: Final = "commit/commit_date"
_NAMES: Final = frozenset({*_COMMIT.values(), _DATE, "branch", "remotes", "dirty"})


def git_attributes(info: Mapping[str, Any]) -> Iterator[tuple[str, AttributeType, Any]]:
    """Yield path, type and value of each attribute that git information becomes; datetimes in milliseconds."""
    commit = info.get("commit") or {}
    for key, name in _COMMIT.items():
        if isinstance(commit.get(key), str):
            yield f"{GIT}/{name}", AttributeType.STRING, commit[key]
    moment = _milliseconds(commit.get("commitDate"))
    if moment is not None:
        yield f"{GIT}/{_DATE}", AttributeType.DATETIME, moment
    if isinstance(info.get("currentBranch"), str):
        yield f"{GIT}/branch", AttributeType.STRING, info["currentBranch"]
    if isinstance(info.get("remotes"), list):
        yield f"{GIT}/remotes", AttributeType.STRING_SET, [str(remote) for remote in info["remotes"]]
    if isinstance(info.get("repositoryDirty"), bool):
        yield f"{GIT}/dirty", AttributeType.BOOL, info["repositoryDirty"]


def is_git(path: str) -> bool:
    """True for the attributes that :func:`git_attributes` makes."""
    return path.startswith(f"{GIT}/") and path[len(GIT) + 1 :] in _NAMES


def git_properties(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of the one attribute, of the values (by path) of those that are in the store."""
    found = {path[len(GIT) + 1 :]: value for path, value in values.items() if is_git(path)}
    commit: dict[str, Any] = {key: found.get(name) for key, name in _COMMIT.items()}
    if found.get(_DATE) is not None:
        moment = datetime.fromtimestamp(found[_DATE] // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        commit["commitDate"] = f"{moment}.{found[_DATE] % 1000:03d}Z"
    return {
        "commit": commit,
        "currentBranch": found.get("branch"),
        "remotes": found.get("remotes"),
        "repositoryDirty": found.get("dirty"),
    }


def _milliseconds(text: Any) -> int | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)

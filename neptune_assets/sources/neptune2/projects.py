"""Projects that the token's user may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from neptune_assets.errors import SourceError, UnknownProjectError
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError, understood
from neptune_assets.sources.neptune2.values import sent
from neptune_assets.sources.values import text

_PAGE: Final = 500
_ARGUMENTS: Final[Mapping[str, Any]] = {"userRelation": "viewerOrHigher", "sortBy": ["lastViewed"]}
_NAMED: Final = 20
"""Projects that an error names."""


@dataclass(frozen=True, slots=True)
class Project:
    """One project: its name, what the server calls it inside, and whether its objects are of the kind read here."""

    name: str
    key: str


def list_projects(calls: Calls, workspace: str | None) -> list[str]:
    """Names of all projects the user may see, sorted; of one workspace if it is given."""
    arguments = {**_ARGUMENTS, **({} if workspace is None else {"organizationIdentifier": workspace})}
    try:
        answer = calls.json("listProjects", **arguments)
        with understood("projects"):
            names = set(_names(answer))
            # One answer holds all projects, as the client believes, or some server's idea of a page.
            while len(names) < int(answer.get("matchingItemCount") or answer.get("totalItemCount") or 0):
                before = len(names)
                answer = calls.json("listProjects", limit=_PAGE, offset=before, **arguments)
                names |= set(_names(answer))
                if len(names) == before:
                    break
    except CallError as error:
        where = "" if workspace is None else f" of workspace {workspace!r}"
        raise SourceError(
            f"The projects{where} cannot be listed: {error.message}",
            hint="Check source.neptune2.workspace, and that the API token's user may see it.",
        ) from error
    return sorted(name for name in names if workspace is None or name.startswith(f"{workspace}/"))


def open_project(calls: Calls, name: str) -> Project:
    """Look a project up. Raises UnknownProjectError, with the names of those there are, if it is not there."""
    try:
        answer = calls.json("getProject", projectIdentifier=name)
    except CallError as error:
        if error.status not in {403, 404, 400}:
            raise
        raise unknown_project(calls, name) from error
    with understood(f"project {name!r}"):
        version, key = int(answer.get("version") or 2), sent(text(answer["id"]))
    if version < 2:
        raise SourceError(
            f"Project {name!r} was never moved to Neptune 2.x, so no client of it can read the project.",
            hint="Leave it out with filters.projects.exclude.",
        )
    return Project(name, key)


def unknown_project(calls: Calls, name: str) -> UnknownProjectError:
    """Return the error that names the projects there are; some servers only say in a listing that there is none."""
    try:
        known = list_projects(calls, None)
    except SourceError:
        known = []
    more = " ..." if len(known) > _NAMED else ""
    return UnknownProjectError(
        f"The server has no project {name!r}, or the API token's user may not see it.",
        hint=f"Check its spelling; it has: {', '.join(known[:_NAMED])}{more}." if known else "Check its spelling.",
    )


def _names(answer: Mapping[str, Any]) -> list[str]:
    return [
        f"{sent(text(project['organizationName']))}/{sent(text(project['name']))}"
        for project in answer.get("entries") or ()
    ]

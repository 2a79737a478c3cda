"""Attributes of a run as the server describes them, all in one answer: values become rows, the rest is sorted out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from neptune_assets.schema import AttributeType
from neptune_assets.sources.neptune2.attribute_pages import UNREAD
from neptune_assets.sources.neptune2.references import Reference
from neptune_assets.sources.neptune2.values import milliseconds, real, texts, whole
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.rows import check_value
from neptune_assets.sources.values import text, truth

_ATOMS: Final[Mapping[str, tuple[AttributeType, Callable[[Any], Any]]]] = {
    "float": (AttributeType.FLOAT, real),
    "int": (AttributeType.INT, whole),
    "bool": (AttributeType.BOOL, truth),
    "string": (AttributeType.STRING, text),
    "datetime": (AttributeType.DATETIME, milliseconds),
}
_SERIES: Final[Mapping[str, AttributeType]] = {
    "floatSeries": AttributeType.FLOAT_SERIES,
    "stringSeries": AttributeType.STRING_SERIES,
    "imageSeries": AttributeType.FILE_SERIES,
}
_STATES: Final[Mapping[str, str]] = {"running": "Active", "idle": "Inactive"}
"""States of a run in the words that the client shows."""
_COMMIT: Final[Mapping[str, str]] = {
    "commitId": "commit_id",
    "message": "message",
    "authorName": "author_name",
    "authorEmail": "author_email",
}


@dataclass(slots=True)
class Contents:
    """What a run holds besides single values: series to read, and attributes whose values take a call of their own."""

    series: list[tuple[str, AttributeType]] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    """String sets whose strings are not in the answer."""
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    """Path and hash."""


class AttributeReader:
    """Sorts out the attributes of one run; values go into ``state``."""

    def __init__(self, state: RunState, key: str, project_key: str) -> None:
        self._state = state
        self._key = key
        self._project_key = project_key
        self.contents = Contents()
        self._known: dict[tuple[str, str], str] = {}
        self._taken = 0

    def take(self, attribute: Mapping[str, Any]) -> None:
        """Take one attribute. What cannot be understood becomes an error of the run and leaves the others alone."""
        path, kind = (attribute.get("name"), attribute.get("type")) if isinstance(attribute, Mapping) else (None, None)
        if not isinstance(path, str) or not isinstance(kind, str):
            self._state.error(f"The server describes an attribute without a name or a type: {attribute!r:.200}.")
            return
        if UNREAD in attribute:
            self._unread(path, kind, str(attribute[UNREAD]))
            return
        described = repr(attribute)
        first = self._known.setdefault((path, kind), described)
        if len(self._known) == self._taken:
            if first != described:
                self._state.error(f"The server tells two things of {path!r} ({kind}); the first is kept.", path)
            return
        self._taken += 1
        properties = attribute.get(f"{kind}Properties") or {}
        try:
            self._take(path, kind, properties)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            self._state.error(f"What the server says of {path!r} ({kind}) cannot be understood: {error!s:.200}.", path)

    def _unread(self, path: str, kind: str, reason: str) -> None:
        """Report an attribute that the server fails to give; points of series are asked for all the same."""
        if not path:
            self._state.error(
                f"The server does not give its attributes at once ({reason}) It was read by the names that the server "
                "tells of the project; whether the run has others cannot be told. Materialize again later."
            )
        elif kind in _SERIES:
            self._wanted(path, _SERIES[kind], self.contents.series, (path, _SERIES[kind]))
        elif kind in _ATOMS and not self._state.rows.wants(_ATOMS[kind][0], path):
            return
        else:
            self._state.error(f"{path!r} ({kind}) could not be read: {reason}", path)

    def _take(self, path: str, kind: str, properties: Mapping[str, Any]) -> None:
        state = self._state
        if kind in _ATOMS:
            attribute_type, convert = _ATOMS[kind]
            self._assign(path, attribute_type, convert, properties.get("value"))
        elif kind == "experimentState":
            value = properties.get("value")
            self._assign(path, AttributeType.STRING, text, _STATES.get(value, value) if value is not None else None)
        elif kind == "stringSet":
            if properties.get("values") is None:
                self._wanted(path, AttributeType.STRING_SET, self.contents.sets, path)
            else:
                state.assign(path, AttributeType.STRING_SET, texts(properties["values"]))
        elif kind in _SERIES:
            self._wanted(path, _SERIES[kind], self.contents.series, (path, _SERIES[kind]))
        elif kind == "file":
            extension, size = properties.get("ext") or "", properties.get("size")
            reference = Reference(
                "file", self._key, path, extension=text(extension), size=-1 if size is None else whole(size)
            )
            state.assign(path, AttributeType.FILE, str(reference))
        elif kind == "fileSet":
            size = properties.get("size")
            reference = Reference("file_set", self._key, path, size=-1 if size is None else whole(size))
            state.assign(path, AttributeType.FILE_SET, str(reference))
        elif kind == "artifact":
            if state.rows.wants(AttributeType.ARTIFACT, path):
                self._artifact(path, properties.get("hash"))
        elif kind == "gitRef":
            self._git(path, properties)
        elif kind == "notebookRef":
            state.note(f"{path!r} names a notebook kept on the server; the lake has no place for it.", path)
        else:
            state.note(f"{path!r} is of type {kind!r}, which is not known here; it is left out.", path)

    def _assign(self, path: str, kind: AttributeType, convert: Callable[[Any], Any], value: Any) -> None:
        if value is None:
            self._state.note(f"{path!r} has no value on the server.", path, kind)
        else:
            self._state.assign(path, kind, convert(value))

    def _wanted(self, path: str, kind: AttributeType, items: list[Any], item: Any) -> None:
        if self._state.rows.wants(kind, path):
            check_value("string_value", path)
            items.append(item)

    def _artifact(self, path: str, digest: Any) -> None:
        if not digest:
            self._state.note(f"{path!r} is an artifact that tracks no files yet.", path, AttributeType.ARTIFACT)
            return
        reference = Reference("artifact", self._project_key, path, place=text(digest))
        self._state.assign(path, AttributeType.ARTIFACT, str(reference))
        self.contents.artifacts.append((path, digest))

    def _git(self, path: str, properties: Mapping[str, Any]) -> None:
        """Git information becomes values below its path, named as neptune-scale names them."""
        for name, kind, value in git_values(properties):
            self._state.assign(f"{path}/{name}", kind, value)


def git_values(properties: Mapping[str, Any]) -> Iterator[tuple[str, AttributeType, Any]]:
    """Names, types and values of what the server knows of a run's git repository; what it does not know is left out."""
    commit = properties.get("commit") or {}
    for key, name in _COMMIT.items():
        if commit.get(key) is not None:
            yield f"commit/{name}", AttributeType.STRING, text(commit[key])
    if commit.get("commitDate") is not None:
        yield "commit/commit_date", AttributeType.DATETIME, milliseconds(commit["commitDate"])
    if properties.get("currentBranch") is not None:
        yield "branch", AttributeType.STRING, text(properties["currentBranch"])
    if properties.get("remotes") is not None:
        yield "remotes", AttributeType.STRING_SET, texts(properties["remotes"])
    if properties.get("repositoryDirty") is not None:
        yield "dirty", AttributeType.BOOL, truth(properties["repositoryDirty"])

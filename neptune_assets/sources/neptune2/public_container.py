"""A run, model or model version as neptune-client's public functions show it, in the words of the protocol."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.local_times import moments_of


class Container:
    """One run, model or version. It is opened once, when it is first asked something, and closed right away.

    What is open when the interpreter ends, the client closes then, with calls to a server that may be gone. Attributes
    can be fetched without.
    """

    def __init__(self, key: str, token: str) -> None:
        self._key = key
        self._token = token
        self._lock = threading.Lock()
        self._contents: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
        self._images: dict[str, list[bytes]] = {}

    def described(self) -> Any:
        """All attributes as the server would describe them."""
        values, items = self._opened()
        return {"attributes": [self._describe(path, item, values) for path, item in items.items()]}

    def answer(self, operation: str, parameters: Mapping[str, Any]) -> Any:
        """The answer to a call about one attribute."""
        path = parameters["attribute"]
        item = self._attribute(path)
        if operation == "getStringSetAttribute":
            return {"values": sorted(item.fetch())}
        if operation == "getImageSeriesValues":
            return {"totalItemCount": len(self._pictures(path))}
        if operation in {"getFloatSeriesValues", "getStringSeriesValues"}:
            frame = item.fetch_values(progress_bar=False)
            if not len(frame):
                return {"totalItemCount": 0, "values": []}
            times, unsure = moments_of(time.to_pydatetime() for time in frame["timestamp"])
            points = [
                {"step": step, "timestampMillis": when, "value": value}
                for step, when, value in zip(frame["step"].tolist(), times, frame["value"].tolist(), strict=True)
            ]
            return {"totalItemCount": len(points), "values": points, "unsureTimes": unsure}
        raise CallError(f"neptune-client has no public function for {operation}.", hint="Use its version 1.14.0.post2.")

    def artifact(self, path: str) -> Any:
        """The files of an artifact."""
        return {"files": [file.to_dto() for file in self._attribute(path).fetch_files_list()]}

    def fetched(self, folder: Path, path: str, index: int | None) -> Path:
        """Download a file, an image, or the archive of a file set into a folder."""
        target = folder / "file"
        if index is None:
            self._attribute(path).download(str(target), progress_bar=False)
        else:
            target.write_bytes(self._pictures(path)[index])
        return target

    def _opened(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Single values as a tree, and the client's objects of all attributes by path."""
        import neptune

        with self._lock:
            if self._contents is None:
                project, kind, run_id = self._key.split("\t")
                opener: Any = {
                    "run": neptune.init_run,
                    "model": neptune.init_model,
                    "modelVersion": neptune.init_model_version,
                }[kind]
                with opener(with_id=run_id, project=project, api_token=self._token, mode="read-only") as container:
                    self._contents = container.fetch(), dict(_leaves(container.get_structure()))
            return self._contents

    def _attribute(self, path: str) -> Any:
        _, items = self._opened()
        if path not in items:
            raise CallError(f"There is no {path!r} any more.", hint="Materialize again.", status=404)
        return items[path]

    def _pictures(self, path: str) -> list[bytes]:
        if path not in self._images:
            with tempfile.TemporaryDirectory() as folder:
                self._attribute(path).download(folder, progress_bar=False)
                files = sorted(Path(folder).iterdir(), key=lambda file: int(file.stem))
                self._images[path] = [file.read_bytes() for file in files]
        return self._images[path]

    def _describe(self, path: str, item: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        kind = _KINDS.get(type(item).__name__, type(item).__name__)
        properties: dict[str, Any] = {}
        if kind in {"float", "int", "bool", "string", "datetime", "experimentState"}:
            value = _at(values, path)
            properties["value"] = written(value) if isinstance(value, datetime) else value
        elif kind == "file":
            properties["ext"] = item.fetch_extension()
        elif kind == "artifact":
            properties["hash"] = f"{self._key}\n{path}" if item.fetch_hash() else None
        elif kind == "gitRef":
            properties["commit"] = {"commitId": self._commit(path)}
        return {"name": path, "type": kind, f"{kind}Properties": properties}

    def _commit(self, path: str) -> Any:
        """The commit's id, which only a table tells."""
        import neptune

        project, _, run_id = self._key.split("\t")
        with neptune.init_project(project=project, api_token=self._token, mode="read-only") as opened:
            for row in opened.fetch_runs_table(id=run_id, columns=[path], trashed=None, progress_bar=False):
                return row.get_attribute_value(path)
        return None


_KINDS: Final[Mapping[str, str]] = {
    "Float": "float",
    "Integer": "int",
    "Boolean": "bool",
    "String": "string",
    "Datetime": "datetime",
    "File": "file",
    "FileSet": "fileSet",
    "FloatSeries": "floatSeries",
    "StringSeries": "stringSeries",
    "FileSeries": "imageSeries",
    "StringSet": "stringSet",
    "GitRef": "gitRef",
    "RunState": "experimentState",
    "NotebookRef": "notebookRef",
    "Artifact": "artifact",
}
"""The protocol's words for the client's classes."""


def _leaves(structure: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, item in structure.items():
        path = f"{above}{name}"
        found.extend(_leaves(item, f"{path}/") if isinstance(item, dict) else [(path, item)])
    return found


def _at(values: Any, path: str) -> Any:
    for name in path.split("/"):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def written(moment: datetime) -> str:
    """A time as the server writes it; without a zone it is UTC."""
    return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).isoformat()

"""The way to read that only uses neptune-query's public functions: for versions the fast way was not tested with.

Decisions. Runs are asked for one by one: a table of several turns ints into floats where one run lacks an attribute,
and a NaN into a hole. Metrics are asked for in groups that grow while their frames are mostly filled and shrink to
single series where every series has steps of its own; long series come in pieces, the last points first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Final, TypeVar, cast

from neptune_assets.errors import SourceError
from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.settings import Neptune3Source
from neptune_assets.sources.neptune3.access import Access
from neptune_assets.sources.neptune3.answers import LISTED, NAMES_OF_TYPES
from neptune_assets.sources.neptune3.frames import epoch_milliseconds, float_columns, object_points
from neptune_assets.sources.neptune3.model import (
    Attribute,
    FileReference,
    FloatPart,
    ListedRun,
    ObjectPart,
    Page,
    RefusedError,
    Request,
    RunAttributes,
)
from neptune_assets.sources.neptune3.pacing import Pace
from neptune_assets.sources.neptune3.public_files import open_public_download
from neptune_assets.sources.neptune3.turns import turn

_FIRST_GROUP: Final = 8
_LARGEST_GROUP: Final = 256
_FIRST_CONTACT: Final = 30.0

T = TypeVar("T")


class PublicReader:
    """Implements :class:`~neptune_assets.sources.neptune3.model.Reader` with public functions."""

    def __init__(self, settings: Neptune3Source, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._pace = Pace(settings.requests_per_second)
        self._lock = threading.Lock()
        self._group = _FIRST_GROUP
        self._answered = False

    def projects(self, workspace: str | None) -> list[str]:
        """Return the projects the token may see, by the public function of neptune-client."""
        from neptune.management import get_project_list

        try:
            names = get_project_list(api_token=self._access.token)
        except Exception as error:
            raise RefusedError(f"neptune-client cannot list projects: {error}") from error
        return sorted(name for name in names if workspace is None or name.startswith(f"{workspace}/"))

    def alive(self, project: str) -> None:
        """Ask for one run."""
        self._runs_table(project, limit=1, attributes=["sys/id"])

    def list_runs(self, project: str, query: Any = None) -> list[ListedRun]:
        """Return the runs of a project, the oldest first."""
        from neptune_query.filters import Attribute as NamedAttribute

        by_time = NamedAttribute("sys/creation_time", type="datetime")
        frame = self._runs_table(project, runs=query, attributes=list(LISTED), sort_by=by_time, sort_direction="asc")
        rows = frame.reset_index().to_dict("records")
        runs = [_listed({name.rsplit(":", 1)[0]: value for name, value in row.items()}) for row in rows]
        return list({run.run_id: run for run in runs}.values())

    def attributes(self, project: str, runs: Sequence[ListedRun], types: Sequence[str] | None) -> list[RunAttributes]:
        """Return what each run has, one call for each run."""
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            return list(pool.map(lambda run: self._attributes(project, run, types), runs))

    def _attributes(self, project: str, run: ListedRun, types: Sequence[str] | None) -> RunAttributes:
        from neptune_query.filters import AttributeFilter

        wanted = AttributeFilter(type=_types(types))
        frame = self._runs_table(project, runs=_which(run), attributes=wanted)
        found = RunAttributes(run)
        if not len(frame):
            return found
        for column in frame.columns:
            path, _, kind = column.rpartition(":")
            attribute_type = AttributeType(kind)
            value = None if attribute_type in SERIES_TYPES else _value(attribute_type, frame[column].array[0])
            found.attributes.append(Attribute(path, attribute_type, value))
        return found

    def definitions(self, project: str, runs: Sequence[ListedRun], types: Sequence[str] | None) -> set[str]:
        """Return the paths of all attributes of some runs."""
        from neptune_query import runs as neptune_runs
        from neptune_query.filters import AttributeFilter

        wanted = AttributeFilter(type=_types(types))
        chosen: list[Any] = [_which(run) for run in runs if run.trashed]
        if len(chosen) < len(runs):
            chosen.append([run.run_id for run in runs if not run.trashed])
        found: set[str] = set()
        for which in chosen:
            found.update(
                self._call(
                    2,
                    lambda which=which: neptune_runs.list_attributes(project=project, runs=which, attributes=wanted),  # type: ignore[misc]
                )
            )
        return found

    def groups(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Cut requests into groups of one run and one type."""
        group: list[Request] = []
        for request in requests:
            last = group[-1] if group else request
            if group and (len(group) >= self._group or last.run is not request.run or last.type is not request.type):
                yield group
                group = []
            group.append(request)
        if group:
            yield group

    def page(self, project: str, requests: Sequence[Request], *, again: bool = False) -> Page:
        """Return the next points; requests that go on from different steps take a call each."""
        if all(request.after is None for request in requests):
            return self._page(project, requests)
        pages = [self._page(project, [request]) for request in requests]
        return Page([part for page in pages for part in page.parts], [rest for page in pages for rest in page.rest])

    def download(self, project: str, run_id: str, path: str, step: float | None, reference: FileReference) -> BinaryIO:
        """Download a file to a temporary directory and open it there; closing removes it."""
        return open_public_download(self._call, project, run_id, path, step, reference)

    def _runs_table(self, project: str, **arguments: Any) -> Any:
        from neptune_query import runs as neptune_runs

        requests = 1 if isinstance(arguments["attributes"], list) else 3
        return self._call(
            requests,
            lambda: neptune_runs.fetch_runs_table(project=project, type_suffix_in_column_names=True, **arguments),
        )

    def _page(self, project: str, requests: Sequence[Request]) -> Page:
        limit = max(2, self._settings.points_per_page // len(requests))
        by_path = {request.path: request for request in requests}
        after = requests[0].after
        asked: dict[str, Any] = {
            "project": project,
            "runs": [requests[0].run.run_id] if _is_float(requests) else _which(requests[0].run),
            "include_time": "absolute",
            "lineage_to_the_root": False,
            "tail_limit": limit,
            # Both ends of a range belong to it; what has come already is left out below.
            "step_range": (None, after),
        }
        parts = self._floats(by_path, asked) if _is_float(requests) else self._objects(by_path, asked, requests[0].type)
        kept: list[FloatPart | ObjectPart] = []
        rest = []
        for part in parts:
            full = _length(part) >= limit
            if after is not None:
                _leave_out(part, float(after))
            if _length(part):
                kept.append(part)
                if full:
                    last = part.steps[-1] if isinstance(part, FloatPart) else part.points[-1][0]
                    rest.append(Request(part.request.run, part.request.path, part.request.type, float(last)))
        return Page(kept, rest)

    def _floats(self, by_path: dict[str, Request], asked: dict[str, Any]) -> Sequence[FloatPart | ObjectPart]:
        from neptune_query import runs as neptune_runs

        previews = self._settings.metric_previews
        frame = self._call(
            1,
            lambda: neptune_runs.fetch_metrics(attributes=list(by_path), include_point_previews=previews, **asked),
        )
        parts: list[FloatPart | ObjectPart] = []
        for path, steps, times, values, preview, completion in float_columns(frame):
            marks = (preview, completion) if preview is not None and preview.any() else (None, None)
            parts.append(FloatPart(by_path[path], steps, times, values, *marks))
        if len(by_path) > 1:
            points = sum(len(part.steps) for part in parts if isinstance(part, FloatPart))
            self._learn(points, len(frame) * len(by_path))
        return parts

    def _learn(self, points: int, cells: int) -> None:
        """Take more series together while frames are mostly filled, fewer while they are mostly holes."""
        with self._lock:
            if points * 4 >= cells * 3:
                self._group = min(_LARGEST_GROUP, self._group * 2)
            elif points * 2 < cells:
                self._group = max(1, self._group // 2)

    def _objects(
        self, by_path: dict[str, Request], asked: dict[str, Any], kind: AttributeType
    ) -> Sequence[FloatPart | ObjectPart]:
        from neptune_query import runs as neptune_runs
        from neptune_query.filters import AttributeFilter

        wanted = AttributeFilter(name=list(by_path), type=[cast(Any, str(kind))])
        frame = self._call(3, lambda: neptune_runs.fetch_series(attributes=wanted, **asked))
        return [
            ObjectPart(by_path[path], [(step, time, _object(value)) for step, time, value in points])
            for path, points in object_points(frame)
        ]

    def _call(self, requests: int, call: Callable[[], T]) -> T:
        """Call a public function; turn what it raises into RefusedError, or SourceError for a bad token."""
        from neptune_query import exceptions

        for again in (True, False):
            for _ in range(requests):
                self._pace.wait()
            seconds = self._settings.retry_seconds
            try:
                with turn(self._settings, self._access, seconds if self._answered else min(seconds, _FIRST_CONTACT)):
                    result = call()
            except exceptions.NeptuneInvalidCredentialsError:
                raise self._access.rejected() from None
            except exceptions.NeptuneProjectInaccessible as error:
                raise RefusedError(f"{self._access.server} gives no access to the project.", status=403) from error
            except exceptions.NeptuneRetryError as error:
                raise RefusedError(_plain(error), exhausted=True) from error
            except exceptions.NeptuneUnexpectedResponseError as error:
                if "status: 401" not in str(error):
                    raise RefusedError(_plain(error)) from error
                if not again:
                    raise self._access.rejected() from None
                _sign_in_anew()
                continue
            except (exceptions.NeptuneError, ValueError, KeyError, RuntimeError) as error:
                raise RefusedError(_plain(error)) from error
            self._answered = True
            return result
        raise SourceError("A call was neither answered nor refused.", hint="Report this as a bug.")


def _sign_in_anew() -> None:
    """Drop neptune-query's clients, and with them access tokens that a server takes no more."""
    from neptune_query.internal import client

    client.clear_cache()


def _which(run: ListedRun) -> Any:
    """How to name one run: by its id; a run in the trash is only found by a filter that says so."""
    from neptune_query.filters import Attribute as NamedAttribute
    from neptune_query.filters import Filter

    if not run.trashed:
        return [run.run_id]
    trashed = Filter.eq(NamedAttribute("sys/trashed", type="bool"), True)
    return Filter.eq(NamedAttribute("sys/custom_run_id", type="string"), run.run_id) & trashed


def _length(part: FloatPart | ObjectPart) -> int:
    return len(part.steps) if isinstance(part, FloatPart) else len(part.points)


def _leave_out(part: FloatPart | ObjectPart, after: float) -> None:
    """Leave out points from a step on."""
    if isinstance(part, ObjectPart):
        part.points = [point for point in part.points if point[0] < after]
        return
    new = part.steps < after
    part.steps, part.times, part.values = part.steps[new], part.times[new], part.values[new]
    if part.preview is not None and part.completion is not None:
        part.preview, part.completion = part.preview[new], part.completion[new]


def _types(types: Sequence[str] | None) -> list[Any]:
    return list(types) if types is not None else [str(kind) for kind in NAMES_OF_TYPES]


def _is_float(requests: Sequence[Request]) -> bool:
    return requests[0].type is AttributeType.FLOAT_SERIES


def _listed(row: dict[str, Any]) -> ListedRun:
    present = {name: value for name, value in row.items() if value is not None and value == value}
    moments = {
        name: None if name not in present else present[name].to_pydatetime()
        for name in ("sys/creation_time", "sys/modification_time")
    }
    return ListedRun(
        run_id=str(row["run"]),
        sys_id=str(present.get("sys/id", "")),
        created_at=moments["sys/creation_time"],
        modified_at=moments["sys/modification_time"],
        archived=bool(present.get("sys/archived", False)),
        trashed=bool(present.get("sys/trashed", False)),
        parent=present.get("sys/forking/parent") or None,
        attributes=int(present.get("sys/diagnostics/attributes/total_count", 0)),
        points=int(present.get("sys/diagnostics/attributes/total_series_datapoints", 0)),
    )


def _value(kind: AttributeType, value: Any) -> Any:
    match kind:
        case AttributeType.INT:
            return int(value)
        case AttributeType.FLOAT:
            return float(value)
        case AttributeType.BOOL:
            return bool(value)
        case AttributeType.DATETIME:
            return epoch_milliseconds(value)
        case AttributeType.STRING_SET:
            return list(value)
        case AttributeType.FILE:
            return FileReference(value.path, value.size_bytes, value.mime_type)
    return value


def _object(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if hasattr(value, "edges"):
        return (value.type, value.edges, value.values)
    return FileReference(value.path, value.size_bytes, value.mime_type)


def _plain(error: Exception) -> str:
    """Return an error's text in one line, without colours."""
    import re

    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return re.sub(r"\s+", " ", text).strip()[:500]

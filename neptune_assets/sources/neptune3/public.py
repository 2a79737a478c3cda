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
from neptune_assets.sources.neptune3.access import Access
from neptune_assets.sources.neptune3.answers import LISTED
from neptune_assets.sources.neptune3.frames import float_columns, object_points
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
from neptune_assets.sources.neptune3.public_files import open_public_download
from neptune_assets.sources.neptune3.public_values import (
    are_floats,
    leave_out,
    length,
    listed_row,
    plain_point,
    plain_text,
    plain_value,
    types_asked_for,
    which_run,
)
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.neptune3.turns import turn
from neptune_assets.sources.pacing import Pace

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
        runs = [listed_row({name.rsplit(":", 1)[0]: value for name, value in row.items()}) for row in rows]
        return list({run.run_id: run for run in runs}.values())

    def attributes(
        self,
        project: str,
        runs: Sequence[ListedRun],
        types: Sequence[str] | None,
        names: Sequence[str] | None = None,
    ) -> list[RunAttributes]:
        """Return what each run has, one call for each run."""
        if names is not None:
            raise RefusedError("Attributes are not asked for by name with source.neptune3.client set to public.")
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            return list(pool.map(lambda run: self._attributes(project, run, types), runs))

    def _attributes(self, project: str, run: ListedRun, types: Sequence[str] | None) -> RunAttributes:
        from neptune_query.filters import AttributeFilter

        wanted = AttributeFilter(type=types_asked_for(types))
        frame = self._runs_table(project, runs=which_run(run), attributes=wanted)
        found = RunAttributes(run)
        if not len(frame):
            return found
        for column in frame.columns:
            path, _, kind = column.rpartition(":")
            attribute_type = AttributeType(kind)
            value = None if attribute_type in SERIES_TYPES else plain_value(attribute_type, frame[column].array[0])
            found.attributes.append(Attribute(path, attribute_type, value))
        return found

    def definitions(
        self, project: str, runs: Sequence[ListedRun], types: Sequence[str] | None
    ) -> dict[str, frozenset[AttributeType]]:
        """Return the paths of all attributes of some runs."""
        from neptune_query import runs as neptune_runs
        from neptune_query.filters import AttributeFilter

        wanted = AttributeFilter(type=types_asked_for(types))
        chosen: list[Any] = [which_run(run) for run in runs if run.trashed]
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
        return dict.fromkeys(found, frozenset())

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
            "runs": [requests[0].run.run_id] if are_floats(requests) else which_run(requests[0].run),
            "include_time": "absolute",
            "lineage_to_the_root": False,
            "tail_limit": limit,
            # Both ends of a range belong to it; what has come already is left out below.
            "step_range": (None, after),
        }
        parts = (
            self._floats(by_path, asked) if are_floats(requests) else self._objects(by_path, asked, requests[0].type)
        )
        kept: list[FloatPart | ObjectPart] = []
        rest = []
        for part in parts:
            full = length(part) >= limit
            if after is not None:
                leave_out(part, float(after))
            if length(part):
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
            ObjectPart(by_path[path], [(step, time, plain_point(value)) for step, time, value in points])
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
                raise RefusedError(plain_text(error), exhausted=True) from error
            except exceptions.NeptuneUnexpectedResponseError as error:
                if "status: 401" not in str(error):
                    raise RefusedError(plain_text(error)) from error
                if not again:
                    raise self._access.rejected() from None
                _sign_in_anew()
                continue
            except (exceptions.NeptuneError, ValueError, KeyError, RuntimeError) as error:
                raise RefusedError(plain_text(error)) from error
            self._answered = True
            return result
        raise SourceError("A call was neither answered nor refused.", hint="Report this as a bug.")


def _sign_in_anew() -> None:
    """Drop neptune-query's clients, and with them access tokens that a server takes no more."""
    from neptune_query.internal import client

    client.clear_cache()

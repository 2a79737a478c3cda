"""Requests for series: which run, which attribute, how far back. The same for floats and for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import ApiError, Call
from neptune_assets.server.neptune3.reading.requests import field, find_runs, first_from, last_to, objects, step
from neptune_assets.server.series import Lineage, Window


@dataclass(frozen=True, slots=True)
class SeriesRequest:
    """One series that is asked for; ``body`` is the request as it came."""

    id: str
    run: Run
    path: str
    lineage: Lineage
    previews: bool
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SeriesRequests:
    """All series of a request, runs together, with bounds that hold for all of them."""

    series: list[SeriesRequest]
    window: Window
    descending: bool


def series_requests(call: Call) -> SeriesRequests:
    """Read a request for series; those of runs that are not there are left out."""
    body = call.json_object()
    asked = objects(body, "requests")
    holders = [field(field(item, "series", dict, {}), "holder", dict, {}) for item in asked]
    identifiers = [field(holder, "identifier", str, "") for holder in holders]
    runs = find_runs(call.service.catalog, identifiers)
    found = []
    for item, identifier in zip(asked, identifiers, strict=True):
        run, series = runs.get(identifier), field(item, "series", dict, {})
        if run is not None:
            found.append(
                SeriesRequest(
                    id=field(item, "requestId", str, ""),
                    run=run,
                    path=field(series, "attribute", str, ""),
                    lineage=lineage_of(series.get("lineage") != "NONE", series.get("lineageEntityType") != "RUN"),
                    previews=field(series, "includePreview", bool, False),
                    body=item,
                )
            )
    steps = field(body, "stepRange", dict, {})
    limit = body.get("perSeriesPointsLimit")
    # Some clients share a total out among the series and send what the division gives.
    if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 <= limit < 2**31):
        raise ApiError(400, "BAD_REQUEST", "perSeriesPointsLimit must be a positive number.")
    limit = None if limit is None else int(limit)
    descending = field(body, "order", str, "ascending") == "descending"
    # The lake holds the series of a run together: asked one after the other, they are decoded once.
    found.sort(key=lambda item: (item.run.number, item.path))
    return SeriesRequests(
        found, Window(first_from(step(steps, "from")), last_to(step(steps, "to")), limit, descending), descending
    )


def lineage_of(full: bool, experiment: bool) -> Lineage:
    """Return how far back a request goes."""
    if full:
        return Lineage.FULL
    return Lineage.EXPERIMENT if experiment else Lineage.OWN

"""Handlers: attributes of one object, all or by one; pages of series; tables and their columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from starlette.responses import Response

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.search import NameFilter, fill, names_of, values
from neptune_assets.server.catalog.tables import AGGREGATES, LAST, VARIANCE, Run
from neptune_assets.server.endpoints import Call, Handler
from neptune_assets.server.neptune2.containers import RUNS, SCOPE_OF_TYPE
from neptune_assets.server.neptune2.responses import BadRequestError, Json, NotFoundError
from neptune_assets.server.neptune2.series import Asked, series_configs
from neptune_assets.server.neptune2.state import number_of, state_of, text_of
from neptune_assets.server.neptune2.tables import Attribute, attribute_of, attributes_of, table_of, visible
from neptune_assets.server.series import FloatPoints, step_doubles


def float_page(total: int, points: FloatPoints) -> Response:
    """Return the answer with a page of points, of so many in all."""
    steps, values = step_doubles(points.steps), points.values
    if not len(points) or not _plain(values) or not _plain(steps):
        return Json({"totalItemCount": total, "values": _objects(points)})
    texts = pc.binary_join_element_wise(
        '{"step":',
        _texts(steps),
        ',"timestampMillis":',
        _texts(points.times),
        ',"value":',
        _texts(values),
        "},",
        "",
    )
    # Strings of an array lie one after the other: what they make together is there already.
    _, offsets, letters = texts.buffers()
    first, last = (int(np.frombuffer(offsets, np.int32)[texts.offset + place]) for place in (0, len(texts)))
    body = b"".join((b'{"totalItemCount":%d,"values":[' % total, memoryview(letters)[first : last - 1], b"]}"))
    return Response(body, media_type=Json.media_type)


def _plain(numbers: np.ndarray) -> bool:
    """True if JSON has all these numbers as Arrow writes them: -0 would come back as the integer 0."""
    return bool((np.isfinite(numbers) & ((numbers != 0) | ~np.signbit(numbers))).all())


def _texts(numbers: np.ndarray) -> pa.Array:
    """Numbers as the shortest texts that stand for them."""
    return pa.array(numbers).cast(pa.string())


def _objects(points: FloatPoints) -> list[dict[str, float | int]]:
    return [
        {"step": step, "timestampMillis": moment, "value": number}
        for step, moment, number in zip(
            step_doubles(points.steps).tolist(), points.times.tolist(), points.values.tolist(), strict=True
        )
    ]


_MAX_PAGE = 100_000


def get_attributes(call: Call) -> Response:
    """Return all attributes of an object with their values."""
    state = state_of(call)
    container = state.containers.find(text_of(call, "experimentId"))
    if container.run is None:
        return Json({"attributes": []})
    service = call.service
    found, _ = values(service.catalog, service.series, [container.run], NameFilter())
    state.series.expect(container.run, found)
    attributes = attributes_of(container.run, found)
    state.artifacts.complete(container.run, attributes)
    configs = series_configs(service, container.run)
    for attribute in attributes:
        if attribute["name"] in configs and attribute["type"] == "floatSeries":
            attribute["floatSeriesProperties"]["config"] = configs[attribute["name"]]
    return Json({"attributes": attributes})


def get_attribute(kind: AttributeType) -> Handler:
    """Return a handler that answers with one attribute of this type, or 404."""

    def handler(call: Call) -> Response:
        state = state_of(call)
        run, path = run_of(call), text_of(call, "attribute")
        found = one(call, run, path, kind)
        state.artifacts.complete(run, [found])
        properties = found[f"{found['type']}Properties"]
        if kind is AttributeType.FLOAT_SERIES:
            properties["config"] = series_configs(call.service, run).get(path)
        return Json(properties)

    return handler


def get_float_series_values(call: Call) -> Response:
    """Return a page of a float series."""
    return float_page(*state_of(call).series.floats(run_of(call), text_of(call, "attribute"), _asked(call)))


def get_string_series_values(call: Call) -> Response:
    """Return a page of a string series."""
    kind = AttributeType.STRING_SERIES
    total, points = state_of(call).series.objects(run_of(call), text_of(call, "attribute"), kind, _asked(call))
    lines = [{"step": point.step / MICROSTEPS, "timestampMillis": point.time, "value": point.value} for point in points]
    return Json({"totalItemCount": total, "values": lines})


def get_image_series_values(call: Call) -> Response:
    """Return how many images a series has, and what is known of those on the page besides their bytes."""
    kind = AttributeType.FILE_SERIES
    total, points = state_of(call).series.objects(run_of(call), text_of(call, "attribute"), kind, _asked(call))
    images = [
        {
            "step": point.step / MICROSTEPS,
            "timestampMillis": point.time,
            "name": point.value.get("name"),
            "description": point.value.get("description"),
        }
        for point in points
    ]
    return Json({"totalItemCount": total, "values": images})


def search_entries(call: Call) -> Response:
    """Return a page of a table."""
    state, body = state_of(call), call.json_object()
    project_id = state.containers.project_id(text_of(call, "projectIdentifier"))
    pagination = body.get("pagination") or {}
    offset, limit = pagination.get("offset", 0), pagination.get("limit", 100)
    if not (isinstance(offset, int) and isinstance(limit, int) and offset >= 0 and 0 <= limit <= _MAX_PAGE):
        raise BadRequestError(f"Pages have an offset from 0 on and a limit of at most {_MAX_PAGE}.")
    filters = body.get("attributeFilters")
    columns = [str(item.get("path")) for item in filters] if isinstance(filters, list) and filters else None
    return Json(state.tables.page(table_of(project_id, _scope(call), body), offset, limit, columns))


def search_attributes(call: Call) -> Response:
    """Return the columns of a table whose names hold a text."""
    state = state_of(call)
    project_id = state.containers.project_id(text_of(call, "projectIdentifier"))
    return Json({"entries": state.tables.columns(project_id, _scope(call), text_of(call, "search"))})


def run_of(call: Call) -> Run:
    """Return the run that a request is about. Raises NotFoundError if there is none, or nothing in it yet."""
    container = state_of(call).containers.find(text_of(call, "experimentId"))
    if container.run is None:
        raise NotFoundError(f"{container.project_id} has no attributes of its own.")
    return container.run


def one(call: Call, run: Run, path: str, kind: AttributeType) -> Attribute:
    """Return an attribute of a run. Raises NotFoundError if there is none of this type."""
    service = call.service
    if kind is AttributeType.FLOAT_SERIES:
        named = names_of(service.catalog, [path]).get(path, {})
        if kind in named:
            everything = AGGREGATES | LAST | VARIANCE
            fill(service.catalog, service.series, run.project, [named[kind]], [run.number], everything)
    found, _ = values(service.catalog, service.series, [run], NameFilter(paths=[path], types=[kind]))
    made = attribute_of(found[0]) if found and visible(run, path) else None
    if made is None:
        raise NotFoundError(f"There is no attribute {path!r} of type {kind.value}.")
    return made


def _asked(call: Call) -> Asked:
    after = call.query.get("skipToStep")
    try:
        step = float(after) if after else None
    except ValueError as error:
        raise BadRequestError(f"skipToStep must be a number, not {after!r}.") from error
    return Asked(number_of(call, "offset", 0), number_of(call, "limit", 1_000), step)


def _scope(call: Call) -> str:
    kinds: list[Any] = call.request.query_params.getlist("type")
    scope = SCOPE_OF_TYPE.get(kinds[0]) if kinds else RUNS
    if scope is None:
        raise BadRequestError(f"There are no tables of {kinds[0]!r}.")
    return scope

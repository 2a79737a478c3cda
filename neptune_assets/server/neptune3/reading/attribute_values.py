"""Values of attributes of some runs of a project, page by page."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from neptune_api.proto.neptune_pb.api.v1.model.attributes_pb2 import (
    ProtoNextPageDTO,
    ProtoQueryAttributesExperimentResultDTO,
    ProtoQueryAttributesResultDTO,
)
from starlette.responses import Response

from neptune_assets.server.catalog.search import Place, values
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.neptune3.reading.requests import (
    find_runs,
    make_token,
    name_filter,
    page_limit,
    page_token,
    reading,
    texts,
)
from neptune_assets.server.neptune3.reading.wire import attribute

_PAGE: Final = 10_000


@reading
def attribute_values(call: Call) -> Response:
    """Answer a page of values; the values of a run may go on in the next one."""
    body, catalog = call.json_object(), call.service.catalog
    project = call.query.get("projectIdentifier", "")
    catalog.refresh(project)
    if body.get("experimentIdsFilter") is None:
        runs = sorted(catalog.runs(project), key=lambda run: run.number)
    else:
        identifiers = texts(body, "experimentIdsFilter")
        runs = list({run.number: run for run in find_runs(catalog, identifiers).values()}.values())
    limit = max(1, min(_PAGE, page_limit(body, _PAGE)))
    state = page_token(body)
    found, place = values(
        catalog,
        call.service.series,
        runs,
        name_filter(body),
        after=None if state is None else _place(state),
        limit=limit,
    )
    answer = ProtoQueryAttributesResultDTO(
        entries=[
            ProtoQueryAttributesExperimentResultDTO(
                experimentId=run.uuid or run.run_id,
                experimentShortId=run.sys_id,
                attributes=[attribute(value) for value in group],
            )
            for run, group in groupby(found, lambda value: value.run)
        ],
        nextPage=ProtoNextPageDTO(limit=limit),
    )
    if place is not None:
        answer.nextPage.nextPageToken = make_token(place.run, place.path, place.type)
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


def _place(state: list[object]) -> Place:
    if len(state) == 3:
        run, path, kind = state
        if isinstance(run, int) and isinstance(path, str) and isinstance(kind, str):
            return Place(run, path, kind)
    raise ApiError(400, "BAD_REQUEST", "The token of the page is not of this server.")

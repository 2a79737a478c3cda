"""What clients may get wrong is answered with 4xx: they would repeat a 5xx for an hour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from neptune_api.proto.neptune_pb.api.v1.model.attributes_pb2 import ProtoQueryAttributesResultDTO
from neptune_api.proto.neptune_pb.api.v1.model.leaderboard_entries_pb2 import ProtoLeaderboardEntriesSearchResultDTO
from neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import (
    ProtoFloatSeriesValuesResponseDTO,
    ProtoSeriesValuesResponseDTO,
)

from neptune_assets_tests.server.reading.store_logging import log
from neptune_assets_tests.support.server import Served

SEARCH = "/api/leaderboard/v1/proto/leaderboard/entries/search/"
GLOBAL = "/api/leaderboard/v1/proto/leaderboard/entries/global/search/"
DEFINITIONS = "/api/leaderboard/v1/leaderboard/attributes/definitions/query"
VALUES = "/api/leaderboard/v1/proto/leaderboard/attributes/query"
FLOATS = "/api/leaderboard/v1/proto/attributes/series/float"
OBJECTS = "/api/leaderboard/v1/proto/attributes/series"
BUCKETS = "/api/leaderboard/v1/proto/attributes/timeseries/buckets"
IN_LAKE = {"projectIdentifier": "ws/lake"}


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def series(run: str, path: str, **more: Any) -> dict[str, Any]:
    holder = {"identifier": run, "type": "experiment"}
    return {"requestId": path, "series": {"holder": holder, "attribute": path, "lineage": "FULL", **more}}


@pytest.mark.parametrize(
    ("url", "query", "body", "status"),
    [
        (SEARCH, {}, {}, 403),
        (SEARCH, {"projectIdentifier": "ws/none"}, {}, 403),
        (SEARCH, IN_LAKE, [], 400),
        (SEARCH, IN_LAKE, "not json", 400),
        (SEARCH, IN_LAKE, {"pagination": {"limit": -1}}, 400),
        (SEARCH, IN_LAKE, {"pagination": {"limit": "ten"}}, 400),
        (SEARCH, IN_LAKE, {"query": {"query": "`a`:string =="}}, 400),
        (SEARCH, IN_LAKE, {"query": {"query": '`lr`:float == "many"'}}, 400),
        (SEARCH, IN_LAKE, {"query": {"query": '`sys/name`:string MATCHES "("'}}, 400),
        (SEARCH, IN_LAKE, {"sorting": {"sortBy": {"name": "lr", "type": "nothing"}}}, 400),
        (SEARCH, IN_LAKE, {"attributeFilters": ["lr"]}, 400),
        (GLOBAL, {}, {"query": {"query": "NOT"}}, 400),
        (DEFINITIONS, {}, {"projectIdentifiers": ["ws/none"]}, 403),
        (DEFINITIONS, {}, {"projectIdentifiers": "ws/lake"}, 400),
        (DEFINITIONS, {}, {"projectIdentifiers": ["ws/lake"], "nextPage": {"nextPageToken": "?"}}, 400),
        (DEFINITIONS, {}, {"projectIdentifiers": ["ws/lake"], "nextPage": {"nextPageToken": "WzFd"}}, 400),
        (
            DEFINITIONS,
            {},
            {"projectIdentifiers": ["ws/lake"], "attributeNameFilter": {"mustMatchAny": [{"mustMatchRegexes": ["("]}]}},
            400,
        ),
        (VALUES, {"projectIdentifier": "ws/none"}, {}, 403),
        (VALUES, IN_LAKE, {"experimentIdsFilter": ["nonsense"]}, 400),
        (VALUES, IN_LAKE, {"experimentIdsFilter": ["ws/none/X-1"]}, 403),
        (VALUES, IN_LAKE, {"nextPage": {"nextPageToken": "WyJhIl0="}}, 400),
        (FLOATS, {}, {"requests": [series("ws/none/X-1", "loss")]}, 403),
        (FLOATS, {}, {"requests": [series("ws/lake/LAK-1", "loss")], "stepRange": {"from": "zero"}}, 400),
        (FLOATS, {}, {"requests": [series("ws/lake/LAK-1", "loss")], "perSeriesPointsLimit": -1}, 400),
        (OBJECTS, {}, {"requests": [{**series("ws/lake/LAK-1", "log"), "searchAfter": {"token": "?"}}]}, 400),
        (BUCKETS, {}, "\xff\xff\xff", 400),
    ],
)
def test_mistakes(http: httpx.Client, url: str, query: dict[str, str], body: Any, status: int) -> None:
    sent: dict[str, Any] = {"content": body.encode("latin-1")} if isinstance(body, str) else {"json": body}
    answer = http.post(url, params=query, **sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]
    assert (answer.json()["errorType"] == "ACCESS_DENIED") is (status == 403)


def test_a_syntax_error_is_called_so(http: httpx.Client) -> None:
    answer = http.post(SEARCH, params=IN_LAKE, json={"query": {"query": "(`a` = 1"}})
    assert answer.json()["title"] == "Syntax error"


def test_without_a_token(served: Served) -> None:
    assert httpx.post(f"{served.url}{SEARCH}", params=IN_LAKE, json={}).status_code == 401


def test_pages_of_runs(http: httpx.Client) -> None:
    sorting = {"dir": "ascending", "sortBy": {"name": "sys/id", "type": "string"}}
    found = []
    for offset in range(0, 8, 2):
        body = {
            "pagination": {"limit": 2, "offset": offset},
            "sorting": sorting,
            "attributeFilters": [{"path": "sys/id"}],
        }
        page = ProtoLeaderboardEntriesSearchResultDTO.FromString(http.post(SEARCH, params=IN_LAKE, json=body).content)
        assert page.matching_item_count == 5
        found.append([entry.attributes[0].string_properties.value for entry in page.entries])
    assert [len(page) for page in found] == [2, 2, 1, 0]
    *with_ids, made_up = [item for page in found for item in page]
    assert with_ids == ["LAK-1", "LAK-2", "LAK-3", "LAK-8"]
    assert made_up.startswith("LAKE-")


def test_pages_of_definitions_and_values(http: httpx.Client) -> None:
    whole = http.post(DEFINITIONS, json={"projectIdentifiers": ["ws/lake"]}).json()["entries"]
    assert whole == sorted(whole, key=lambda entry: (entry["name"], entry["type"]))
    token, found = None, []
    while True:
        page = http.post(
            DEFINITIONS, json={"projectIdentifiers": ["ws/lake"], "nextPage": {"limit": 3, "nextPageToken": token}}
        ).json()
        found += page["entries"]
        token = page["nextPage"].get("nextPageToken")
        if token is None:
            break
    assert found == whole
    runs = ["CUSTOM/ws/lake/run-1", "ws/lake/LAK-2", "ws/lake/LAK-99"]
    seen: dict[str, set[str]] = {}
    token = ""
    while True:
        body = {"experimentIdsFilter": runs, "nextPage": {"limit": 4, "nextPageToken": token}}
        answer = ProtoQueryAttributesResultDTO.FromString(http.post(VALUES, params=IN_LAKE, json=body).content)
        assert sum(len(entry.attributes) for entry in answer.entries) <= 4
        for entry in answer.entries:
            names = {attribute.name for attribute in entry.attributes}
            assert not names & seen.setdefault(entry.experimentShortId, set())
            seen[entry.experimentShortId] |= names
        token = answer.nextPage.nextPageToken
        if not token:
            break
    assert seen.keys() == {"LAK-1", "LAK-2"}
    assert {"lr", "loss", "log", "weights", "model", "samples", "sys/trashed"} <= seen["LAK-1"]


def test_points_after_a_step(http: httpx.Client) -> None:
    body = {"requests": [{**series("CUSTOM/ws/store/fork", "loss"), "afterStep": 2.5}], "order": "descending",
            "perSeriesPointsLimit": 2}  # fmt: skip
    (found,) = ProtoFloatSeriesValuesResponseDTO.FromString(http.post(FLOATS, json=body).content).series
    assert [(point.step, point.value) for point in found.series.values] == [(2.0, 3.0), (1.0, 2.0)]


def test_pages_of_objects_are_bounded_in_bytes(http: httpx.Client, served: Served) -> None:
    assert served.service is not None
    project = served.service.store.project("ws/long", create=True)
    lines = {step: f"{step} " + "x" * 900_000 for step in range(20)}
    log(project, "r", strings={"a": lines, "b": {0: "short"}})
    requests = [series("CUSTOM/ws/long/r", path) for path in ("a", "b", "missing")]
    found: dict[str, list[str]] = {"a": [], "b": []}
    pages = 0
    while requests:
        content = http.post(OBJECTS, json={"requests": requests, "order": "ascending"}).content
        assert len(content) < 12 << 20
        pages += 1
        answers = {item.requestId: item for item in ProtoSeriesValuesResponseDTO.FromString(content).series}
        assert "missing" not in answers
        again = []
        for request in requests:
            answer = answers.get(request["requestId"])
            if answer is None:
                continue
            found[answer.requestId] += [point.object.stringValue for point in answer.seriesValues.values]
            if not answer.HasField("searchAfter"):
                again.append(request)
            elif not answer.searchAfter.finished:
                again.append({**request, "searchAfter": {"finished": False, "token": answer.searchAfter.token}})
            else:
                assert answer.searchAfter.token
        requests = again
    assert pages > 1
    assert found == {"a": list(lines.values()), "b": ["short"]}


def test_a_damaged_project_is_an_error_of_its_own(http: httpx.Client) -> None:
    answer = http.post(SEARCH, params={"projectIdentifier": "ws/damaged"}, json={})
    assert 400 <= answer.status_code < 500
    query = {"query": "`lr`:float EXISTS"}
    answer = http.post(GLOBAL, json={"query": query, "sorting": {"sortBy": {"name": "lr", "type": "float"}}})
    found = ProtoLeaderboardEntriesSearchResultDTO.FromString(answer.content)
    assert {f"{entry.organization_name}/{entry.project_name}" for entry in found.entries} == {"ws/lake", "ws/store"}
    assert found.matching_item_count == 5
    labels = [{a.name: a.string_properties.value for a in entry.attributes} for entry in found.entries]
    assert [label["sys/custom_run_id"] for label in labels] == ["fork", "parent", "no ids", "run-2", "run-1"]

"""Which requests are made for attributes; the calls are answered here, without a server."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, BinaryIO

import pytest

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.schema import Scope
from neptune_assets.sources.neptune2.attributes import AttributePages
from neptune_assets.sources.neptune2.connection import CallError
from neptune_assets.sources.neptune2.listing import Listed

RUNS = [Listed(f"P-{number}", f"key P-{number}", "") for number in range(30)]


class Answers:
    """Answers with as many attributes as each run has."""

    def __init__(self, sizes: dict[str, int], failure: Exception | None = None) -> None:
        self.sizes = sizes
        self.failure = failure
        self.count = 0
        self.asked: list[list[str]] = []

    def json(self, operation: str, headers: Any = None, **parameters: Any) -> Any:
        if operation == "getExperimentAttributes":
            run_id = parameters["experimentId"].removeprefix("key ")
            self.asked.append([run_id])
            return {"attributes": self._of(run_id)}
        ids = re.findall(r'"(P-\d+)"', parameters["params"]["query"]["query"])
        self.asked.append(ids)
        if self.failure is not None:
            raise self.failure
        return {"entries": [{"experimentId": f"key {i}", "attributes": self._of(i)} for i in ids if i in self.sizes]}

    def _of(self, run_id: str) -> list[dict[str, str]]:
        if run_id not in self.sizes:
            raise CallError("There is no such run.", hint="", status=404)
        return [{"name": f"{run_id} {number}"} for number in range(self.sizes[run_id])]

    def download(self, operation: str, sink: BinaryIO, size: int | None = None, **parameters: Any) -> None:
        raise AssertionError(operation)

    def download_url(self, url: str, sink: BinaryIO, most: int) -> None:
        raise AssertionError(url)


def taken(answers: Answers, runs: list[Listed]) -> list[tuple[str, Any]]:
    with ThreadPoolExecutor(2) as pool:
        pages = AttributePages(answers, "project", Scope.RUNS, runs, pool, 2)
        found = []
        while (following := pages.take()) is not None:
            found.append((following[0].run_id, following[1]))
        assert not pages.ready
    return found


def test_runs_come_in_order_with_what_each_has() -> None:
    sizes = {run.run_id: int(run.run_id[2:]) for run in RUNS}
    found = taken(Answers(sizes), RUNS)
    assert [(run_id, len(attributes)) for run_id, attributes in found] == list(sizes.items())
    assert all(item["name"].startswith(f"{run_id} ") for run_id, attributes in found for item in attributes)


def test_the_larger_runs_are_the_fewer_are_asked_for_at_once() -> None:
    answers = Answers({run.run_id: 4_000 if int(run.run_id[2:]) < 11 else 100 for run in RUNS})
    taken(answers, RUNS)
    assert [len(ids) for ids in answers.asked] == [1, 5, 5, 5, 14]


def test_a_run_without_attributes_is_not_asked_for_again() -> None:
    answers = Answers({run.run_id: 0 for run in RUNS})
    assert taken(answers, RUNS) == [(run.run_id, []) for run in RUNS]
    assert sorted(run_id for ids in answers.asked for run_id in ids) == sorted(run.run_id for run in RUNS)


def test_what_a_table_lacks_is_asked_for_by_itself_and_told() -> None:
    answers = Answers({run.run_id: 1 for run in RUNS if run.run_id != "P-7"})
    found = dict(taken(answers, RUNS))
    assert list(found) == [run.run_id for run in RUNS]
    assert [run_id for run_id, attributes in found.items() if isinstance(attributes, CallError)] == ["P-7"]
    assert ["P-7"] in answers.asked


def test_runs_are_asked_for_one_by_one_where_tables_are_refused() -> None:
    answers = Answers({run.run_id: 1 for run in RUNS}, CallError("No tables.", hint="", status=400))
    found = taken(answers, RUNS)
    assert [(run_id, len(attributes)) for run_id, attributes in found] == [(run.run_id, 1) for run in RUNS]


def test_a_server_that_goes_away_ends_the_runs_that_follow_and_not_those_before() -> None:
    answers = Answers({run.run_id: 1 for run in RUNS}, SourceUnavailableError("Gone.", hint=""))
    with ThreadPoolExecutor(2) as pool:
        pages = AttributePages(answers, "project", Scope.RUNS, RUNS, pool, 2)
        first = pages.take()
        assert first is not None
        assert first[0].run_id == "P-0"
        wait([pool.submit(lambda: None) for _ in range(2)])
    # The answer is there, and is not taken before its turn.
    assert not pages.ready
    with pytest.raises(SourceUnavailableError):
        pages.take()

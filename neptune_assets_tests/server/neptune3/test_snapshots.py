"""Any operations, cut into requests anywhere, each sent once or twice: the store holds what a simple model says."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neptune_assets.server.neptune3.writing import Snapshots
from neptune_assets.server.store.projects import ProjectStore, Store
from neptune_assets.server.store.runs import NewRun
from neptune_assets_tests.support.ingest import assign, change, points

PATHS = ["a", "b", "c", "d"]
VALUES = [0.0, -0.0, 1.5, float("inf"), 2]
STEPS = st.integers(0, 8)

OPERATIONS = st.one_of(
    st.tuples(st.just("points"), STEPS, st.dictionaries(st.sampled_from(PATHS), st.sampled_from([*VALUES, "text"]))),
    st.tuples(st.just("preview"), STEPS, st.dictionaries(st.sampled_from(PATHS), st.sampled_from(VALUES))),
    st.tuples(st.just("assign"), st.sampled_from(PATHS), st.sampled_from([1, "x", True])),
    st.tuples(st.just("set"), st.sampled_from(PATHS), st.sampled_from(["x", "y"]), st.booleans()),
)


class Model:
    """What each operation means, one after the other, in the plainest words."""

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        self.series: dict[str, dict[int, Any]] = {}
        self.previews: dict[str, dict[int, float]] = {}
        self.values: dict[str, Any] = {}

    def apply(self, operation: tuple[Any, ...]) -> None:
        word, *rest = operation
        if word == "points":
            for path, value in rest[1].items():
                self._point(path, rest[0], value)
        elif word == "preview":
            for path, value in rest[1].items():
                taken = self.series.get(path, {})
                if self._is(path, "floats") and rest[0] > max(taken, default=-1):
                    self.previews.setdefault(path, {})[rest[0]] = float(value)
        elif word == "assign":
            if self._is(rest[0], type(rest[1]).__name__):
                self.values[rest[0]] = rest[1]
        elif self._is(rest[0], "set"):
            members = self.values.setdefault(rest[0], set())
            members.add(rest[1]) if rest[2] else members.discard(rest[1])

    def _point(self, path: str, step: int, value: Any) -> None:
        if not self._is(path, "strings" if isinstance(value, str) else "floats"):
            return
        taken = self.series.setdefault(path, {})
        if step not in taken:
            taken[step] = value if isinstance(value, str) else float(value)
            for waiting in [waiting for waiting in self.previews.get(path, {}) if waiting <= step]:
                del self.previews[path][waiting]

    def _is(self, path: str, kind: str) -> bool:
        return self.types.setdefault(path, kind) == kind


def snapshot_of(operation: tuple[Any, ...]) -> Any:
    word, *rest = operation
    if word == "points":
        return points(rest[0], rest[1])
    if word == "preview":
        return points(rest[0], rest[1], preview=0.5)
    if word == "assign":
        return assign({rest[0]: rest[1]})
    return change(rest[0], add=(rest[1],) if rest[2] else (), remove=() if rest[2] else (rest[1],))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectStore]:
    store = Store(Path(tmp_path_factory.mktemp("model")) / "store")
    yield store.project("team/model", create=True)
    store.close()


def send(project: ProjectStore, run_id: str, batch: list[Any]) -> None:
    with project.write() as writing:
        run = writing.run(run_id)
        assert run is not None
        Snapshots(writing, writing.operations(run)).apply([snapshot_of(operation) for operation in batch])


@given(st.lists(OPERATIONS, max_size=25), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_the_store_holds_what_was_said(project: ProjectStore, operations: list[Any], chance: Any) -> None:
    with project.write() as writing:
        run = writing.create_run(NewRun(None))
    model = Model()
    rest = list(operations)
    while rest:
        size = chance.randint(1, len(rest))
        batch, rest = rest[:size], rest[size:]
        for _ in range(chance.randint(1, 2)):
            send(project, run.run_id, batch)
        for operation in batch:
            model.apply(operation)
    with project.read() as connection:

        def pairs(query: str) -> dict[str, dict[int, Any]]:
            found: dict[str, dict[int, Any]] = {}
            for path, step, value in connection.execute(
                f"SELECT path, step / 1000000, {query} JOIN attributes ON attribute = attributes.id WHERE run = ?",
                (run.id,),
            ):
                found.setdefault(path, {})[step] = value
            return found

        floats, previews = pairs("bits FROM points"), pairs("bits FROM previews")
        strings = pairs("objects.value FROM objects")
        values = dict(
            connection.execute(
                "SELECT path, value FROM attributes WHERE run = ? AND value IS NOT NULL", (run.id,)
            ).fetchall()
        )
        last = dict(
            connection.execute(
                "SELECT path, last_step / 1000000 FROM attributes WHERE run = ? AND last_step IS NOT NULL", (run.id,)
            ).fetchall()
        )

    def bits(series: dict[int, float]) -> dict[int, int]:
        return {step: struct.unpack("<q", struct.pack("<d", value))[0] for step, value in series.items()}

    expected = {path: series for path, series in model.series.items() if series}
    assert floats == {path: bits(series) for path, series in expected.items() if model.types[path] == "floats"}
    assert strings == {path: series for path, series in expected.items() if model.types[path] == "strings"}
    assert previews == {path: bits(series) for path, series in model.previews.items() if series}
    assert last == {path: max(series) for path, series in expected.items()}
    assert values == {
        path: "[" + ",".join(f'"{member}"' for member in sorted(value)) + "]" if isinstance(value, set) else value
        for path, value in model.values.items()
    }

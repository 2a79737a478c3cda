from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.projects import ProjectStore, Store
from neptune_assets.server.store.runs import NewRun, bits_float, decode, encode, float_bits
from neptune_assets.server.store.writing import Attribute, Problem, Problems

FLOATS = AttributeType.FLOAT_SERIES


@pytest.fixture
def project(tmp_path: Path) -> Iterator[ProjectStore]:
    store = Store(tmp_path / "store")
    project = store.project("team/vision", create=True)
    with project.write() as writing:
        writing.create_run(NewRun("r"))
    yield project
    store.close()


def append(project: ProjectStore, path: str, points: list[tuple[int, float]]) -> Problems:
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        operations = writing.operations(run)
        attribute = operations.attribute(path, FLOATS)
        assert isinstance(attribute, Attribute)
        steps = [step for step, _ in points]
        return operations.append_floats(attribute, steps, [7] * len(points), [value for _, value in points])


def points(project: ProjectStore, path: str, table: str = "points") -> list[tuple[int, float]]:
    with project.read() as connection:
        rows = connection.execute(
            f"SELECT step, bits FROM {table} JOIN attributes ON attribute = attributes.id WHERE path = ? ORDER BY step",
            (path,),
        )
        return [(row[0], bits_float(row[1])) for row in rows]


def test_points_are_kept_to_the_bit(project: ProjectStore) -> None:
    values = [-0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, 0.1]
    assert not append(project, "m", list(enumerate(values)))
    assert [float_bits(value) for _, value in points(project, "m")] == [float_bits(value) for value in values]
    append(project, "nan", [(0, math.nan)])
    assert math.isnan(points(project, "nan")[0][1])


def test_points_sent_again_are_duplicates_and_no_other_takes_their_step(project: ProjectStore) -> None:
    append(project, "m", [(0, 1.0), (10, 2.0)])
    again = append(project, "m", [(0, 1.0), (10, 2.0), (20, 3.0)])
    assert again == {Problem.DUPLICATE_POINT: 2}
    assert append(project, "m", [(20, 4.0)]) == {Problem.STEP_TAKEN: 1}
    assert append(project, "m", [(30, 4.0), (30, 4.0), (29, 1.0), (29, 2.0), (10, 9.0)]) == {
        Problem.DUPLICATE_POINT: 1,
        Problem.STEP_TAKEN: 2,
    }
    assert points(project, "m") == [(0, 1.0), (10, 2.0), (20, 3.0), (29, 1.0), (30, 4.0)]


def test_late_points_find_their_place(project: ProjectStore) -> None:
    append(project, "m", [(step, step / 2) for step in range(1_000, 2_000)])
    late = [(step, step / 2) for step in range(1_000)]
    random.Random(5).shuffle(late)
    assert not append(project, "m", late[:500])
    assert not append(project, "m", [(-7, -3.5), (2_000, 1_000.0), *late[500:]])
    assert append(project, "m", late) == {Problem.DUPLICATE_POINT: 1_000}
    assert points(project, "m") == [(-7, -3.5), *((step, step / 2) for step in range(2_001))]
    with project.read() as connection:
        assert connection.execute("SELECT last_step FROM attributes").fetchone()[0] == 2_000
    # The last one is still the highest one: what comes without a look at the table comes after it.
    assert not append(project, "m", [(2_001, 0.0)])
    assert points(project, "m")[-1] == (2_001, 0.0)


def test_many_interleaved_series_end_up_each_in_order(project: ProjectStore) -> None:
    chosen = random.Random(3)
    expected: dict[str, list[tuple[int, float]]] = {f"m{number}": [] for number in range(40)}
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        operations = writing.operations(run)
        for step in range(200):
            for path in chosen.sample(sorted(expected), 20):
                attribute = operations.attribute(path, FLOATS)
                assert attribute is not None
                value = chosen.random()
                assert not operations.append_floats(attribute, [step], [step], [value])
                expected[path].append((step, value))
    assert {path: points(project, path) for path in expected} == expected
    with project.read() as connection:
        last = dict(connection.execute("SELECT path, last_step FROM attributes").fetchall())
    assert last == {path: found[-1][0] for path, found in expected.items()}


def test_previews_are_replaced_and_vanish_behind_points(project: ProjectStore) -> None:
    def preview(step: int, value: float) -> Problems:
        with project.write() as writing:
            run = writing.run("r")
            assert run is not None
            operations = writing.operations(run)
            attribute = operations.attribute("m", FLOATS)
            assert attribute is not None
            return operations.preview(attribute, step, 7, float_bits(value), float_bits(0.5))

    append(project, "m", [(0, 0.0)])
    assert preview(0, 1.0) == {Problem.PREVIEW_NOT_AFTER_LAST: 1}
    assert not preview(1, 1.0)
    assert not preview(3, 3.0)
    assert not preview(1, 1.5)
    assert points(project, "m", "previews") == [(1, 1.5), (3, 3.0)]
    append(project, "m", [(2, 2.0)])
    assert points(project, "m", "previews") == [(3, 3.0)]
    assert not append(project, "m", [(-1, -1.0), (1, 1.0)])
    assert points(project, "m", "previews") == [(3, 3.0)]
    assert preview(2, 2.5) == {Problem.PREVIEW_NOT_AFTER_LAST: 1}
    append(project, "m", [(3, 3.5)])
    assert points(project, "m", "previews") == []
    assert points(project, "m") == [(-1, -1.0), (0, 0.0), (1, 1.0), (2, 2.0), (3, 3.5)]


@pytest.mark.parametrize(
    "kind", [AttributeType.FILE_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.STRING_SERIES]
)
def test_other_series_come_in_any_order_too(project: ProjectStore, kind: AttributeType) -> None:
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        operations = writing.operations(run)
        series = operations.attribute("s", kind)
        assert series is not None
        assert not operations.append_objects(series, [3, 2, 1], [0, 0, 0], ["c", "b", "a"])
        assert series.last_step == 3
        assert operations.append_objects(series, [2, 2], [0, 0], ["b", "x"]) == {
            Problem.DUPLICATE_POINT: 1,
            Problem.STEP_TAKEN: 1,
        }
        assert operations.append_objects(series, [5, 4, 4, 5], [0] * 4, ["e", "d", "x", "e"]) == {
            Problem.DUPLICATE_POINT: 1,
            Problem.STEP_TAKEN: 1,
        }
        assert series.last_step == 5
    with project.read() as connection:
        rows = connection.execute("SELECT step, value FROM objects ORDER BY step").fetchall()
    assert [tuple(row) for row in rows] == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]


def test_a_path_keeps_its_type_and_a_fork_that_of_its_parent(project: ProjectStore) -> None:
    append(project, "m", [(0, 1.0)])
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        assert writing.operations(run).assign("m", AttributeType.INT, 1) == {Problem.TYPE_CONFLICT: 1}
        child = writing.create_run(NewRun("child", parent_project="team/vision", parent_run_id="r", fork_step=0))
        operations = writing.operations(child)
        assert operations.assign("m", AttributeType.INT, 1) == {Problem.TYPE_CONFLICT: 1}
        assert operations.attribute("m", AttributeType.STRING_SERIES) is None
        assert operations.attribute("m", FLOATS) is not None


def test_what_fails_leaves_nothing_behind_not_even_in_memory(project: ProjectStore) -> None:
    def half() -> None:
        with project.write() as writing:
            run = writing.run("r")
            assert run is not None
            operations = writing.operations(run)
            attribute = operations.attribute("m", FLOATS)
            assert attribute is not None
            operations.append_floats(attribute, [0], [0], [1.0])
            raise KeyError("half way")

    revision = project.revision
    with pytest.raises(KeyError):
        half()
    assert points(project, "m") == []
    assert project.revision == revision
    assert not append(project, "m", [(0, 2.0)])
    assert points(project, "m") == [(0, 2.0)]


def test_clear_and_delete(project: ProjectStore) -> None:
    append(project, "m", [(0, 1.0), (1, 2.0)])
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        operations = writing.operations(run)
        operations.change_set("tags", add=["a", "b"], remove=["b"])
        operations.clear("m")
        operations.clear("tags")
        operations.clear("nothing")
    assert points(project, "m") == []
    assert not append(project, "m", [(0, 5.0)])
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        assert writing.operations(run).delete("m")
        assert not writing.operations(run).delete("m")
        assert not writing.operations(run).assign("m", AttributeType.INT, 2**63 - 1)
    with project.read() as connection:
        assert dict(connection.execute("SELECT path, value FROM attributes").fetchall()) == {
            "tags": "[]",
            "m": 2**63 - 1,
        }
        assert connection.execute("SELECT count(*) FROM points").fetchone()[0] == 0


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (AttributeType.STRING, "a\x00b\n" + "é" * 2000),
        (AttributeType.STRING, ""),
        (AttributeType.INT, -(2**63)),
        (AttributeType.BOOL, True),
        (AttributeType.FLOAT, -0.0),
        (AttributeType.DATETIME, -62_135_596_800_000),
        (AttributeType.STRING_SET, ["", "a", "ä\n"]),
    ],
)
def test_values_come_back_as_they_were(project: ProjectStore, kind: AttributeType, value: object) -> None:
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        writing.operations(run).assign("p" * 1000, kind, encode(kind, value))
    with project.read() as connection:
        path, stored = connection.execute("SELECT path, value FROM attributes").fetchone()
    assert path == "p" * 1000
    assert repr(decode(kind, stored)) == repr(value)


def test_revisions_mark_what_changed(project: ProjectStore) -> None:
    before = project.revision
    append(project, "m", [(0, 1.0)])
    assert project.revision == before + 1
    append(project, "m", [(0, 1.0)])  # a duplicate changes nothing
    append(project, "m", [(0, 2.0)])  # nor does what is refused
    assert project.revision == before + 1
    for revision in (before + 1, before + 2):
        with project.read() as connection:
            assert connection.execute("SELECT revision FROM runs").fetchone()[0] == revision
            assert connection.execute("SELECT revision FROM attributes").fetchone()[0] == revision
        append(project, "m", [(-1, 1.0)])  # a late point is a change as any other

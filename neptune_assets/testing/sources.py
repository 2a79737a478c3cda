# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""The promises every source keeps, as one pytest class.

A source's own test module says ``class TestMine(SourceContract)`` and gives a fixture ``case`` that returns a
:class:`SourceCase`: a place with at least two runs in one project, one of which has a float series and a parameter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from neptune_assets.errors import FileGoneError, UnknownProjectError, UnsafePathError
from neptune_assets.plugins import SourceSpec, source_plugins
from neptune_assets.schema import CLASS_TYPES, SCHEMA, SERIES_TYPES, AttributeClass, Scope
from neptune_assets.settings import AttributeFilter, Filters, ProjectFilter, RunFilter
from neptune_assets.sources.protocol import ReadsInPlace, RunEnd, RunRows, Source


@dataclass(frozen=True)
class SourceCase:
    """One place to read from. ``run_ids`` are all runs of ``project``, known without asking the source."""

    open: Callable[[Filters], Source]
    roots: tuple[Path, ...]
    project: str
    run_ids: frozenset[str]
    series_run: str
    series: str
    parameter: str


@dataclass
class Read:
    """What reading some runs gave: rows of each run, and its end mark."""

    rows: dict[str, list[dict[str, Any]]]
    ends: dict[str, RunEnd]

    def paths(self, run_id: str) -> set[tuple[str, str]]:
        """Attributes of a run: path and type."""
        return {(row["attribute_path"], row["attribute_type"]) for row in self.rows[run_id]}


def read(source: Source, project: str, run_ids: Iterable[str]) -> Read:
    """Read runs and check what holds for every chunk: schema, ids, order, size, one end for each run, in turn."""
    wanted = list(run_ids)
    result = Read({run_id: [] for run_id in wanted}, {})
    for chunk in source.read(project, wanted):
        current = wanted[len(result.ends)]
        assert chunk.run_id == current, "chunks come run by run, in the order asked for"
        if isinstance(chunk, RunEnd):
            result.ends[current] = chunk
            continue
        assert isinstance(chunk, RunRows)
        assert isinstance(chunk.batch, pa.RecordBatch)
        assert chunk.batch.schema.equals(SCHEMA)
        chunk.batch.validate(full=True)
        assert 0 < chunk.batch.num_rows <= 128 * 1024
        assert set(chunk.batch["project_id"].to_pylist()) == {project}
        assert set(chunk.batch["run_id"].to_pylist()) == {current}
        result.rows[current].extend(rows_of(chunk.batch))
    assert list(result.ends) == wanted
    return result


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python values; all times are epoch milliseconds where datetimes cannot hold one of them."""
    rows: list[dict[str, Any]]
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for name in ("timestamp", "datetime_value"):
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, name, batch[place].view(pa.int64()))
        rows = batch.to_pylist()
    return rows


def tree(roots: Iterable[Path]) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content hash of everything below the roots, and which names there are."""
    found: dict[str, tuple[int, int, str]] = {}
    for root in roots:
        for path in [root, *sorted(root.rglob("*"))]:
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def key(row: Mapping[str, Any]) -> str:
    """A row as text: two rows are the same row if these are equal, NaN and -0.0 included."""
    return repr(sorted(row.items()))


def _open_all(source: Source, case: SourceCase, reference: str) -> None:
    for member in source.files(case.project, case.series_run, reference):
        member.open().close()


class SourceContract:
    """Subclass it, name its ``spec`` and give the fixture ``case``."""

    spec: ClassVar[SourceSpec]

    @pytest.fixture
    def case(self) -> SourceCase:
        raise NotImplementedError

    def test_opens_what_its_entry_point_declares(self, case: SourceCase) -> None:
        found = source_plugins()
        assert found.specs.get(self.spec.name) is self.spec, found.broken
        self.spec.check_installed()
        source = case.open(Filters())
        assert source.kind == self.spec.name
        assert isinstance(source, ReadsInPlace) == (self.spec.in_place is not None)
        if self.spec.model_registry is None:
            assert [source.runs(case.project, scope) for scope in (Scope.MODELS, Scope.MODEL_VERSIONS)] == [[], []]

    def test_lists_the_project_and_its_runs(self, case: SourceCase) -> None:
        source = case.open(Filters())
        assert case.project in source.projects()
        assert source.projects() == sorted(source.projects())
        assert {info.run_id for info in source.runs(case.project)} == case.run_ids

    def test_fingerprints_stay_while_nothing_changes(self, case: SourceCase) -> None:
        first = {info.run_id: info.fingerprint for info in case.open(Filters()).runs(case.project)}
        again = case.open(Filters())
        read(again, case.project, sorted(case.run_ids))
        assert {info.run_id: info.fingerprint for info in again.runs(case.project)} == first
        assert all(first.values())

    def test_each_run_ends_once_and_keeps_to_the_schema(self, case: SourceCase) -> None:
        result = read(case.open(Filters()), case.project, sorted(case.run_ids, reverse=True))
        assert set(result.ends) == case.run_ids
        assert (case.series, "float_series") in result.paths(case.series_run)

    def test_promises_what_it_gives(self, case: SourceCase) -> None:
        result = read(case.open(Filters()), case.project, sorted(case.run_ids))
        kept = 0
        for run_id, end in result.ends.items():
            if end.promised is None or end.errors:
                continue
            counts: dict[str, int] = {}
            for _, kind in result.paths(run_id):
                counts[kind] = counts.get(kind, 0) + 1
            assert dict(end.promised) == counts, run_id
            kept += 1
        assert kept, "no run of this case is whole"

    def test_rows_have_steps_where_series_do(self, case: SourceCase) -> None:
        result = read(case.open(Filters()), case.project, [case.series_run])
        series = {str(kind) for kind in SERIES_TYPES}
        for row in result.rows[case.series_run]:
            assert (row["step"] is not None) == (row["attribute_type"] in series), row

    def test_reads_the_same_twice(self, case: SourceCase) -> None:
        source = case.open(Filters())
        first = read(source, case.project, [case.series_run]).rows[case.series_run]
        second = read(source, case.project, [case.series_run]).rows[case.series_run]
        assert sorted(map(key, first)) == sorted(map(key, second))

    def test_unknown_project_raises_and_tells_the_known_ones(self, case: SourceCase) -> None:
        source = case.open(Filters())
        with pytest.raises(UnknownProjectError, match="no/such"):
            source.runs("no/such")
        with pytest.raises(UnknownProjectError, match=case.project):
            list(source.read("no/such", ["x"]))

    def test_an_unknown_run_ends_with_an_error_and_the_next_follows(self, case: SourceCase) -> None:
        result = read(case.open(Filters()), case.project, ["no such run", case.series_run])
        assert result.ends["no such run"].errors
        assert not result.rows["no such run"]
        assert result.rows[case.series_run]

    def test_project_filters(self, case: SourceCase) -> None:
        assert case.open(Filters(projects=ProjectFilter(only=["no/such"]))).projects() == []
        assert case.project not in case.open(Filters(projects=ProjectFilter(exclude=["."]))).projects()

    def test_run_filters(self, case: SourceCase) -> None:
        one = case.open(Filters(runs=RunFilter(ids=[case.series_run, "no such run"])))
        assert [info.run_id for info in one.runs(case.project)] == [case.series_run]
        none = case.open(Filters(runs=RunFilter(exclude=["."])))
        assert none.runs(case.project) == []

    def test_attribute_filters(self, case: SourceCase) -> None:
        everything = read(case.open(Filters()), case.project, [case.series_run]).paths(case.series_run)
        for name in AttributeClass:
            chosen = AttributeFilter(classes=[name.value])
            result = read(case.open(Filters(attributes=chosen)), case.project, [case.series_run])
            kinds = {str(kind) for kind in CLASS_TYPES[name]}
            assert result.paths(case.series_run) == {item for item in everything if item[1] in kinds}
            promised = result.ends[case.series_run].promised
            assert promised is None or set(promised) <= kinds
        only = read(
            case.open(Filters(attributes=AttributeFilter(include=[f"^{case.series}$"]))),
            case.project,
            [case.series_run],
        )
        assert only.paths(case.series_run) == {item for item in everything if item[0] == case.series}
        without = read(
            case.open(Filters(attributes=AttributeFilter(exclude=[f"^{case.parameter}$"]))),
            case.project,
            [case.series_run],
        )
        assert without.paths(case.series_run) == {item for item in everything if item[0] != case.parameter}
        assert without.paths(case.series_run) != everything

    def test_every_reference_gives_its_file_or_says_that_it_is_gone(self, case: SourceCase) -> None:
        source = case.open(Filters())
        result = read(source, case.project, sorted(case.run_ids))
        for run_id, rows in result.rows.items():
            for reference in {row["file_value"]["path"] for row in rows if row["file_value"] is not None}:
                try:
                    for member in source.files(case.project, run_id, reference):
                        assert member.relative_path
                        with member.open() as file:
                            file.read(1)
                except FileGoneError:
                    continue

    def test_a_reference_that_no_row_holds_opens_nothing(self, case: SourceCase, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("not yours")
        source = case.open(Filters())
        for reference in (str(secret), "../" * 20 + str(secret).lstrip("/"), "", "\0"):
            with pytest.raises((FileGoneError, UnsafePathError)):
                _open_all(source, case, reference)

    def test_nothing_is_written_to_the_source(self, case: SourceCase) -> None:
        before = tree(case.roots)
        source = case.open(Filters())
        source.projects()
        source.runs(case.project)
        read(source, case.project, sorted(case.run_ids))
        source.problems(case.project)
        source.problems()
        assert tree(case.roots) == before

    def test_what_belongs_to_no_project_is_among_every_projects_problems(self, case: SourceCase) -> None:
        source = case.open(Filters())
        source.projects()
        unnamed = [issue.message for issue in source.problems()]
        assert set(unnamed) <= {issue.message for issue in source.problems(case.project)}

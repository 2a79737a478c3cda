"""Filters that every kind of source applies in the same way: projects, runs, attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.errors import SettingsError
from neptune_assets.schema import CLASS_TYPES, AttributeClass
from neptune_assets.settings import Filters
from neptune_assets.sources.protocol import RunInfo


class Selection:
    """What filters keep. Names and times are tested one by one, rows of a batch all at once."""

    def __init__(self, filters: Filters) -> None:
        self._projects = filters.projects
        self._runs = filters.runs
        self._ids = _wanted_ids(filters.runs.ids, filters.runs.ids_file)
        self._since_until = [
            _moment(value)
            for value in (
                filters.runs.created_since,
                filters.runs.created_until,
                filters.runs.modified_since,
                filters.runs.modified_until,
            )
        ]
        self.model_registry = filters.model_registry
        self._types = frozenset(
            str(kind) for name in filters.attributes.classes for kind in CLASS_TYPES[AttributeClass(name)]
        )
        self._include = [re.compile(pattern) for pattern in filters.attributes.include]
        self._exclude = [re.compile(pattern) for pattern in filters.attributes.exclude]
        self._all_paths = not self._include and not self._exclude
        self._all_types = len(filters.attributes.classes) == len(AttributeClass)
        self._path = lru_cache(maxsize=100_000)(self._match_path)

    def project(self, project_id: str) -> bool:
        """True if the project is kept."""
        wanted = self._projects
        if wanted.only is not None and project_id not in wanted.only:
            return False
        return _matches(project_id, wanted.include, wanted.exclude)

    def run(self, info: RunInfo) -> bool:
        """True if the run is kept. A run whose time is unknown passes filters on that time."""
        if self._ids is not None and info.run_id not in self._ids:
            return False
        if (info.archived and not self._runs.archived) or (info.trashed and not self._runs.trashed):
            return False
        created_since, created_until, modified_since, modified_until = self._since_until
        return (
            _matches(info.run_id, self._runs.include, self._runs.exclude)
            and _between(info.created_at, created_since, created_until)
            and _between(info.modified_at, modified_since, modified_until)
        )

    def attribute(self, path: str, attribute_type: str) -> bool:
        """True if the attribute is kept."""
        return (self._all_types or attribute_type in self._types) and (self._all_paths or self._path(path))

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Keep the rows of attributes that are kept; the same batch if there is nothing to leave out."""
        if self._all_paths and self._all_types:
            return batch
        keep = pa.array([True] * batch.num_rows, pa.bool_())
        if not self._all_types:
            keep = pc.and_(keep, pc.is_in(batch["attribute_type"], pa.array(sorted(self._types))))
        if not self._all_paths:
            encoded = batch["attribute_path"].dictionary_encode()
            verdicts = pa.array([self._path(path) for path in encoded.dictionary.to_pylist()], pa.bool_())
            keep = pc.and_(keep, verdicts.take(encoded.indices))
        return batch.filter(keep)

    def _match_path(self, path: str) -> bool:
        if self._include and not any(pattern.search(path) for pattern in self._include):
            return False
        return not any(pattern.search(path) for pattern in self._exclude)


def _matches(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if include and not any(re.search(pattern, name) for pattern in include):
        return False
    return not any(re.search(pattern, name) for pattern in exclude)


def _wanted_ids(ids: Sequence[str] | None, ids_file: str | None) -> frozenset[str] | None:
    if ids is None and ids_file is None:
        return None
    wanted = set(ids or ())
    if ids_file is not None:
        try:
            lines = Path(ids_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"filters.runs.ids_file {ids_file!r} cannot be read: {error}.",
                hint="Give a UTF-8 text file with one run id a line.",
            ) from error
        wanted.update(line.strip() for line in lines if line.strip())
    return frozenset(wanted)


def _moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _between(moment: datetime | None, since: datetime | None, until: datetime | None) -> bool:
    if moment is None:
        return True
    return (since is None or moment >= since) and (until is None or moment < until)

"""A run as targets get to see it: without the attributes that rules drop, and with the names that rules want.

Targets read it like any run of the lake. What is dropped never reaches them; it is counted here and joins the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import BinaryIO, Final

import pyarrow as pa

from neptune_assets.lake.reader import LakeProject, LakeRun
from neptune_assets.lake.records import RunRecord
from neptune_assets.schema import AttributeType
from neptune_assets.settings import NameRules
from neptune_assets.targets.protocol import Dropped, Receipt
from neptune_assets.targets.rules import Rules

DROPPED_BY: Final = "dropped by rule"
"""What the reason of rows begins with that rules for names drop."""


class RuledRun(LakeRun):
    """One run under rules. ``record`` counts what is left, and its digest stands for content and rules together."""

    def __init__(self, run: LakeRun, rules: Rules) -> None:
        self._run = run
        self.rules = rules
        super().__init__(run.project, run.record)
        self.record = self._ruled(run.record)

    @property
    def original(self) -> RunRecord:
        """The run's record in the lake."""
        return self._run.record

    @cached_property
    def dropped(self) -> tuple[Dropped, ...]:
        """Rows that rules drop, by attribute type and rule. Reading names once finds them."""
        counts: dict[tuple[str, str], int] = {}
        for (path, kind), rows in self._rows_of_dropped.items():
            reason = f"{DROPPED_BY} {self.rules.dropped_by(path)!r}"
            counts[kind, reason] = counts.get((kind, reason), 0) + rows
        return tuple(Dropped(kind, reason, rows) for (kind, reason), rows in sorted(counts.items()))

    def batches(
        self,
        types: Collection[AttributeType] | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int = 65_536,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows as the lake's run does, without those that rules drop."""
        if not self._rows_of_dropped:
            yield from self._run.batches(types, columns, batch_rows)
            return
        read = columns if columns is None or "attribute_path" in columns else [*columns, "attribute_path"]
        for batch in self._run.batches(types, read, batch_rows):
            paths = batch["attribute_path"].dictionary_encode()
            kept = pa.array([self.rules.dropped_by(path) is None for path in paths.dictionary.to_pylist()], pa.bool_())
            left = batch.filter(kept.take(paths.indices))
            if left.num_rows:
                yield left if columns is None else left.select(list(columns))

    def open_file(self, path: str) -> BinaryIO:
        """Open a file by its path as in ``file_value.path``."""
        return self._run.open_file(path)

    def content_digest(self) -> str:
        """Return the digest of the run's content in the lake, whatever the rules."""
        return self._run.content_digest()

    def check(self) -> None:
        """Compare the run's parts in the lake with what was recorded. Raises LakeDamagedError."""
        self._run.check()

    def whole(self, receipt: Receipt) -> Receipt:
        """Return a target's receipt together with the rows that rules dropped before the target saw them."""
        if not self.dropped:
            return receipt
        rows_in = dict(receipt.rows_in)
        for item in self.dropped:
            rows_in[item.attribute_type] = rows_in.get(item.attribute_type, 0) + item.rows
        return replace(receipt, rows_in=rows_in, dropped=(*receipt.dropped, *self.dropped))

    @cached_property
    def _rows_of_dropped(self) -> Mapping[tuple[str, str], int]:
        if not self.rules.drops:
            return {}
        counts: dict[tuple[str, str], int] = {}
        for batch in self._run.batches(columns=["attribute_path", "attribute_type"]):
            table = (
                pa.Table.from_batches([batch])
                .group_by(["attribute_path", "attribute_type"])
                .aggregate([([], "count_all")])
            )
            for row in table.to_pylist():
                key = (row["attribute_path"], row["attribute_type"])
                if self.rules.dropped_by(key[0]) is not None:
                    counts[key] = counts.get(key, 0) + row["count_all"]
        return counts

    def _ruled(self, record: RunRecord) -> RunRecord:
        rows, attributes = dict(record.rows), dict(record.attributes)
        for (_, kind), count in self._rows_of_dropped.items():
            rows[kind] -= count
            if kind in attributes:
                attributes[kind] -= 1
        return replace(
            record,
            digest=self.rules.digest(record.digest),
            rows={kind: count for kind, count in rows.items() if count},
            attributes={kind: count for kind, count in attributes.items() if count},
            files=tuple(item for item in record.files if self.rules.dropped_by(item.attribute_path) is None),
        )


class RuledProject:
    """A project whose runs are under rules; without any, all runs stay as they are."""

    def __init__(self, project: LakeProject, rules: Rules | None) -> None:
        self.project = project
        self.rules = rules or Rules(NameRules())
        self.project_id = project.project_id

    def records(self) -> dict[str, RunRecord]:
        """Return the lake's own records, by run id."""
        return self.project.records()

    def digest(self, record: RunRecord) -> str:
        """Return the digest that a target holds once the run is loaded under these rules."""
        return self.rules.digest(record.digest)

    def run(self, run_id: str) -> RuledRun:
        """Open one run under the rules. Raises LakeError if the project does not have it."""
        return RuledRun(self.project.run(run_id), self.rules)


def wanted_name(run: LakeRun) -> Callable[[str], str]:
    """Return what turns an attribute's path into the name that rules want for it; the path itself without rules.

    A target asks this before it cleans a name, and tells apart attributes that want the same one.
    """
    return run.rules.name if isinstance(run, RuledRun) else str

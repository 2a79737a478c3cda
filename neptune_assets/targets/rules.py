"""The rules for names, and a run as targets get to see it: without what rules drop, with the names that rules want.

Rules know only attribute paths, so they hold for every target alike. A target makes its own legal name out of the
requested one and disambiguates those that collide. Targets read a run under rules like any run of the lake; what is
dropped never reaches them, is counted here and joins the receipt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import yaml
from pydantic import ValidationError

from neptune_assets.errors import SettingsError
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import LakeProject, LakeRun
from neptune_assets.schema import AttributeType
from neptune_assets.settings import NameRules
from neptune_assets.targets.protocol import Dropped, Receipt

_REMEMBERED: Final = 100_000


class Rules:
    """Compiled rules. Paths go in, wanted names or the rule that drops them come out."""

    def __init__(self, settings: NameRules) -> None:
        self.settings = settings
        self._keep = tuple(settings.keep)
        self._drop = [re.compile(pattern) for pattern in settings.drop]
        self._strip = sorted(settings.strip, key=len, reverse=True)
        self.dropped_by = lru_cache(maxsize=_REMEMBERED)(self._dropped_by)

    @property
    def refuses_collisions(self) -> bool:
        """True if runs in which two attributes would have one name are not loaded."""
        return self.settings.collisions == "refuse"

    @property
    def drops(self) -> bool:
        """True if there is any rule that drops attributes."""
        return bool(self._drop)

    @property
    def changes(self) -> bool:
        """True if the rules can change what a target holds of a run; ``naming`` is the target's own affair."""
        return bool(self._drop or self._strip or self.settings.rename)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the rules would name or drop attributes differently; empty where they do nothing."""
        if not self.changes:
            return ""
        chosen = self.settings.model_dump(include={"keep", "drop", "strip", "rename"})
        return blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=8).hexdigest()

    def digest(self, content: str) -> str:
        """Return the digest that a target keeps for content of this digest: the same only under the same rules."""
        if not self.changes:
            return content
        size = max(len(content) // 2, 8)
        return blake2b(f"{content}\n{self.fingerprint}".encode(), digest_size=min(size, 64)).hexdigest()

    def name(self, path: str) -> str:
        """Return the name that the rules want for an attribute; several attributes may want one."""
        if path.startswith(self._keep):
            return path
        for rule in self.settings.rename:
            if path.startswith(rule.prefix):
                path = rule.to + path[len(rule.prefix) :]
                break
        for prefix in self._strip:
            # A name that would be empty stays: nothing would distinguish the attribute.
            if path.startswith(prefix) and len(path) > len(prefix):
                return path[len(prefix) :]
        return path

    def _dropped_by(self, path: str) -> str | None:
        """Return the pattern that drops an attribute, the first that does; None if it is loaded."""
        if path.startswith(self._keep):
            return None
        return next((pattern.pattern for pattern in self._drop if pattern.search(path)), None)


def read_rules(settings: NameRules | str | None) -> Rules:
    """Return the rules that settings hold or name. Raises SettingsError, naming file and line, if they are wrong."""
    if isinstance(settings, str):
        settings = read_rule_file(Path(settings))
    return Rules(settings or NameRules())


def read_rule_file(path: Path) -> NameRules:
    """Read and check a YAML file of rules. Raises SettingsError with the line of every mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The rules for names in {str(path)!r} cannot be read: {error}.",
            hint="Set targets.names to a UTF-8 YAML file, or write the rules there.",
        ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise SettingsError(
            f"{path}{line}: invalid YAML: {getattr(error, 'problem', None) or error}.", hint="Correct the line."
        ) from error
    try:
        return NameRules.model_validate({} if values is None else values)
    except ValidationError as error:
        mistakes = [
            f"{path}:{_line(root, item['loc'])}: {'.'.join(map(str, item['loc'])) or 'rules'}: {item['msg']}"
            for item in error.errors()
        ]
        raise SettingsError(
            "The rules for names are wrong: " + "; ".join(mistakes) + ".",
            hint=f"Rules are {', '.join(NameRules.model_fields)}.",
        ) from None


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Return the line, from 1, of what a validation error points at, or of the nearest thing around it."""
    return max([1, *_marks(node, location)])


def _marks(node: yaml.Node | None, location: tuple[Any, ...]) -> Iterator[int]:
    """Yield the lines of the nodes on the way to ``location``, from the root on, as far as it leads."""
    if node is None:
        return
    yield node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return
            yield found[0].start_mark.line + 1
            node = found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            yield node.start_mark.line + 1
        else:
            return


DROPPED_BY: Final = "dropped by rule"
"""What the reason of rows begins with that rules for names drop."""


class RenamedRun(LakeRun):
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


class RenamedProject:
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

    def run(self, run_id: str) -> RenamedRun:
        """Open one run under the rules. Raises LakeError if the project does not have it."""
        return RenamedRun(self.project.run(run_id), self.rules)


def wanted_name(run: LakeRun) -> Callable[[str], str]:
    """Return what turns an attribute's path into the name that rules want for it; the path itself without rules.

    A target asks this before it cleans a name, and disambiguates attributes that would get the same one.
    """
    return run.rules.name if isinstance(run, RenamedRun) else str

"""Parameters of a run as W&B's nested config holds them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from neptune_assets.schema import VALUE_COLUMN, AttributeType
from neptune_assets.targets.times import iso, whole_milliseconds
from neptune_assets.targets.wandb.columns import plain
from neptune_assets.targets.wandb.records import MAX_EXACT, number_text

if TYPE_CHECKING:
    from neptune_assets.targets.wandb.mapping import Layout


class Parameters:
    """Parameters of a run as W&B takes them: filled by :meth:`add`, batch by batch."""

    def __init__(self, placed: Layout, watched: str | None = None) -> None:
        """``watched`` is the path of a parameter whose value is kept apart, as ``sys/`` attributes are."""
        self._placed, self._watched = placed, watched
        self.config: dict[str, Any] = {}
        self.system: dict[str, Any] = {}
        """Values of ``sys/`` attributes, by path; times in milliseconds since 1970."""
        self.watched: dict[str, Any] = {}
        self.written: Counter[str] = Counter()
        self.mapped: Counter[str] = Counter()
        self.null: Counter[str] = Counter()
        self.beyond = 0
        """Whole numbers above 2**53, which browsers round."""

    def add(self, kind: AttributeType, rows: pa.RecordBatch) -> None:
        """Put the rows of one attribute type into the nested config."""
        name = str(kind)
        paths, values = plain(rows.column("attribute_path")), whole_milliseconds(plain(rows.column(VALUE_COLUMN[kind])))
        for path, value in zip(paths.to_pylist(), values.to_pylist(), strict=True):
            if value is None:
                self.null[name] += 1
                continue
            kept, exact = json_value(name, value)
            (self.written if exact else self.mapped)[name] += 1
            if name == "int" and abs(value) > MAX_EXACT:
                self.beyond += 1
            if path.startswith("sys/"):
                self.system[path] = value
            if path == self._watched:
                self.watched[path] = value if exact else kept
            *branches, leaf = self._placed.config[path, name]
            place = self.config
            for branch in branches:
                place = place.setdefault(branch, {})
            place[leaf] = kept


def json_value(kind: str, value: Any) -> tuple[Any, bool]:
    """Return a parameter as JSON holds it, and whether it is still of its own type; a time is in milliseconds."""
    if kind == "float":
        text = number_text(value)
        return (value, True) if text[-1].isdigit() else (text, False)
    if kind == "datetime":
        return iso(value), False
    if kind == "string_set":
        return list(value), True
    return value, True

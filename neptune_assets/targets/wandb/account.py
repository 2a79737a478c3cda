"""What a load did with every row of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from neptune_assets.targets.protocol import Dropped

EXACT: Final = "neptune_assets/series.parquet"
"""Run file with metrics, histograms and file series as they were, where W&B cannot hold them exactly."""


@dataclass(slots=True)
class Account:
    """What became of every row, and what has to be said of it."""

    rows_in: dict[str, int] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    mapped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    history_rows: int = 0
    system_rows: int = 0
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name and digest of each artifact."""
    version: dict[str, str] = field(default_factory=dict)
    """Collection and digest of the model version, if it is one."""
    bytes: int = 0

    def drops(self) -> tuple[Dropped, ...]:
        """Return dropped rows as the receipt has them."""
        return tuple(Dropped(kind, reason, rows) for (kind, reason), rows in sorted(self.dropped.items()))

"""How fast earlier loads were, from their receipts, and how long the next one will take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neptune_assets.targets.ledger import Entry


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured: runs with rows and bytes written in so many seconds, planning and reading back included."""

    runs: int = 0
    rows: int = 0
    points: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def known(self) -> bool:
        """True if anything was measured."""
        return self.seconds > 0 and self.rows > 0

    def estimate(self, runs: int, rows: int, size: int) -> float | None:
        """Return seconds for runs with so many rows and bytes of files, at the slowest of the measured rates.

        None if nothing was measured.
        """
        if not self.known:
            return None
        wanted = [rows / self.rows]
        if self.bytes:
            wanted.append(size / self.bytes)
        return max(wanted) * self.seconds if runs else 0.0


def measured(entries: Iterable[Entry]) -> Speed:
    """Add up the receipts of verified runs whose time was taken."""
    runs = rows = points = size = 0
    seconds = 0.0
    for entry in entries:
        if entry.receipt is None or not entry.verified or entry.seconds is None:
            continue
        runs += 1
        rows += sum(entry.receipt.rows_in.values())
        points += entry.receipt.rows_in.get("float_series", 0)
        size += entry.receipt.bytes_written
        seconds += entry.seconds
    return Speed(runs, rows, points, size, seconds)

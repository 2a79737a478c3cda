"""Values other than numbers on their way into the history: encoded, and sorted by step."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from neptune_assets.targets.wandb.encoding import EVENTS, item
from neptune_assets.targets.wandb.mapping import Layout
from neptune_assets.targets.wandb.spool import Bounds, SortedSpool

_EVENT_BYTES: Final = 4 << 20
_EVENTS: Final = 4_096


class LastValues:
    """The value at the highest step of every key, as JSON text: what the summary shows."""

    def __init__(self) -> None:
        self.by_key: dict[int, tuple[int, str]] = {}

    def see(self, key: int, step: int, text: str) -> None:
        """Take notice of a value; of two at one step the later one counts."""
        if key not in self.by_key or self.by_key[key][0] <= step:
            self.by_key[key] = (step, text)


class EventSpool:
    """Takes events in any order and gives them back sorted by step."""

    def __init__(self, placed: Layout, last: LastValues, bounds: Bounds) -> None:
        self._keys, self._last = placed.keys, last
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        self.spool = SortedSpool(EVENTS, "step", bounds)
        self._pending: list[tuple[int, int, int, str, bytes]] = []
        self._pending_bytes = 0

    def add(self, path: str, kind: str, step: int, time: int, text: str, *, counted: bool) -> None:
        """Take a value as JSON text; ``counted`` if a time that is not the row's makes it a mapped one."""
        number = self._numbers[path, kind]
        encoded = item(self._keys[path, kind], text)
        self._pending.append((step, number, time, kind if counted else "", encoded))
        self._pending_bytes += len(encoded)
        self._last.see(number, step, text)
        if self._pending_bytes > _EVENT_BYTES or len(self._pending) >= _EVENTS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the spool; before it is read."""
        if self._pending:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._pending, strict=True), EVENTS, strict=True)
            ]
            self.spool.add(pa.RecordBatch.from_arrays(columns, schema=EVENTS))
            self._pending, self._pending_bytes = [], 0

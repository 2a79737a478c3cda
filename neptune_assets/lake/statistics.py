"""What is known of every series once a run was read: counts, first, last, least, greatest, mean, variance.

Rows pass the writer once, sorted; looking at them then costs little and spares the summary a second pass over
everything. The file, beside the lake, is a cache: an entry counts for one content digest of a run, and a run without
one is scanned. Its columns are in :mod:`neptune_assets.lake.statistics_tables`, where it lies and when it is written
in :mod:`neptune_assets.lake.statistics_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.lake.rows import concat, raw, validity
from neptune_assets.lake.series_facts import SeriesFacts, short_segments, short_series
from neptune_assets.lake.statistics_tables import RunFacts
from neptune_assets.schema import PARAMETER_TYPES

PARAMETER_BYTES: Final = 64 << 20
"""A run whose parameters take more memory is left to the summary, which reads it within its own bounds."""

_PARAMETERS: Final = frozenset(str(kind) for kind in PARAMETER_TYPES)


class RunStatistics:
    """Takes compact rows of one run in sorted order, any number at a time.

    Small runs may be taken together, one after the other, and told apart by :meth:`split`.
    """

    def __init__(self, names: Sequence[tuple[str, str]]) -> None:
        self._names = names
        self._series: list[SeriesFacts] = []
        self._last_id = -1
        self._parameters: list[pa.RecordBatch] = []
        self._parameter_bytes = 0

    def update(self, rows: pa.RecordBatch) -> None:
        """Take the next compact rows."""
        ids = rows["attribute"].to_numpy()
        if not len(ids):
            return
        edges = np.flatnonzero(np.diff(ids)) + 1
        starts = np.concatenate(([0], edges))
        ends = np.concatenate((edges, [len(ids)]))
        of_segment = ids[starts]
        kinds = [self._names[place][1] for place in of_segment.tolist()]
        parameter = np.fromiter((kind in _PARAMETERS for kind in kinds), np.bool_, len(kinds))
        if parameter.any():
            self._keep_parameters(rows.filter(pa.array(np.repeat(parameter, ends - starts))))
        chosen = np.flatnonzero(~parameter)
        if len(chosen):
            self._measure(rows, starts, ends, of_segment, chosen)

    def facts(self, run_id: str, digest: str, *, parameters: bool = True) -> RunFacts | None:
        """Return what was found out, or None for a run whose parameters are too large, unless they are left out."""
        if parameters and self._parameter_bytes > PARAMETER_BYTES:
            return None
        names = self._names
        return RunFacts(
            run_id,
            digest,
            self._series,
            [names[item.attribute] for item in self._series],
            self._parameters if parameters else [],
            [
                names[place]
                for batch in (self._parameters if parameters else [])
                for place in batch["attribute"].to_numpy().tolist()
            ],
            self._parameter_bytes,
        )

    def split(self, edges: Sequence[int]) -> list[RunStatistics]:
        """Return the statistics of each of several runs, whose attributes are those from one edge to the next."""
        series = np.searchsorted([item.attribute for item in self._series], edges).tolist()
        parameters = concat(self._parameters) if self._parameters else None
        places = [0] * len(edges)
        if parameters is not None:
            places = np.searchsorted(parameters["attribute"].to_numpy(), edges).tolist()
        found = []
        for run in range(len(edges) - 1):
            one = RunStatistics(self._names)
            one._series = self._series[series[run] : series[run + 1]]
            if parameters is not None and places[run] < places[run + 1]:
                one._keep_parameters(parameters.slice(places[run], places[run + 1] - places[run]))
            found.append(one)
        return found

    def _keep_parameters(self, rows: pa.RecordBatch) -> None:
        self._parameter_bytes += rows.nbytes
        if self._parameter_bytes > PARAMETER_BYTES:
            self._parameters.clear()
        else:
            self._parameters.append(rows)

    def _measure(
        self,
        rows: pa.RecordBatch,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        of_segment: npt.NDArray[np.int32],
        chosen: npt.NDArray[np.int64],
    ) -> None:
        steps, times = rows["step"].to_numpy(), rows["time"].to_numpy()
        place = rows.schema.get_field_index("float_value")
        values = known = None
        together: dict[int, SeriesFacts] = {}
        if place >= 0:
            column = rows.column(place)
            values = raw(column, np.float64)
            if column.null_count:
                known = validity(column)
        if values is not None:
            short = short_segments(starts, ends, chosen, values, known, steps, times)
            if len(short):
                # An attribute that goes on from the batch before is the first segment.
                if int(of_segment[short[0]]) == self._last_id:
                    short = short[1:]
                # The last segment may go on in the next batch, so its exact sum has to be kept.
                if len(short) and int(ends[short[-1]]) == rows.num_rows:
                    short = short[:-1]
                together = short_series(starts[short], ends[short], of_segment[short], values, steps, times)
        for number in chosen.tolist():
            current = int(of_segment[number])
            if current in together:
                self._series.append(together[current])
                self._last_id = current
                continue
            start, end = int(starts[number]), int(ends[number])
            if current != self._last_id:
                self._series.append(SeriesFacts(current))
                self._last_id = current
            series = self._series[-1]
            series.rows += end - start
            series.add_steps(steps[start:end])
            series.add_times(times[start:end])
            if values is not None:
                some = None if known is None else known[start:end]
                if some is None or some.any():
                    series.add_values(values[start:end], steps[start:end], some)

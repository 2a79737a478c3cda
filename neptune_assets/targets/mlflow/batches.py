"""Points as the JSON bodies of MLflow's ``runs/log-batch``: full batches across metrics, built by Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.targets.mlflow.points import Points

METRICS_PER_BATCH: Final = 1000
"""What a server takes at once."""

BYTES_PER_BATCH: Final = 900_000
"""A server takes a million."""


def bodies(uuid: str, portions: Iterable[Points]) -> Iterator[tuple[bytes, int]]:
    """Yield (body, points in it). Bodies are full but for the last, unless names are very long."""
    head = f'{{"run_id":{json.dumps(uuid)},"metrics":['.encode()
    left: list[pa.StringArray] = []
    for points in portions:
        rows = pa.concat_arrays([*left, _rows(points)])
        longest = pc.max(pc.binary_length(rows)).as_py() or 0
        size = max(1, min(METRICS_PER_BATCH, BYTES_PER_BATCH // (longest + 1)))
        whole = len(rows) - len(rows) % size
        for first in range(0, whole, size):
            yield _body(head, rows.slice(first, size)), size
        left = [rows.slice(whole)]
    for rows in left:
        if len(rows):
            yield _body(head, rows), len(rows)


def _body(head: bytes, rows: pa.StringArray) -> bytes:
    return head + ",".join(rows.to_pylist()).encode() + b"]}"


def _rows(points: Points) -> pa.StringArray:
    """Return one JSON object a point. Arrow writes doubles with the fewest digits that give the same double back."""
    heads = pa.array([f'{{"key":{json.dumps(key, ensure_ascii=False)},"value":' for key in points.keys], pa.string())
    values = pc.cast(pa.array(points.values), pa.string())
    return pc.binary_join_element_wise(
        heads.take(pa.array(points.codes)),
        pc.if_else(pa.array(np.asarray(points.is_nan)), '"NaN"', values),
        ',"timestamp":',
        pc.cast(pa.array(points.times), pa.string()),
        ',"step":',
        pc.cast(pa.array(points.steps), pa.string()),
        "}",
        "",
    )

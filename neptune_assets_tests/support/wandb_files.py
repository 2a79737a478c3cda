"""Reads ``.wandb`` files without any of our own code: LevelDB's log by hand, wandb's protobuf classes for the rest."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb


def payloads(data: bytes) -> list[bytes]:
    assert data[:7] == b":W&B\xe1\xbe\x00"
    found, position, current, open_record = [], 7, b"", False
    while position < len(data):
        left = 32_768 - position % 32_768
        if left < 7:
            assert not any(data[position : position + left])
            position += left
            continue
        crc, size, kind = struct.unpack("<IHB", data[position : position + 7])
        piece = data[position + 7 : position + 7 + size]
        assert size <= left - 7
        assert len(piece) == size
        assert zlib.crc32(bytes([kind]) + piece) == crc
        assert (kind in (1, 2)) != open_record
        open_record = kind in (2, 3)
        current += piece
        position += 7 + size
        if kind in (1, 4):
            found.append(current)
            current = b""
    assert not open_record
    return found


@dataclass
class WandbFile:
    run: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    """The rows of the history once more, values as the JSON text that is in the file."""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    """The artifacts that are to be logged, as wandb's protobuf has them."""
    kinds: list[str] = field(default_factory=list)
    system: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """System metrics: time in milliseconds, values by key."""
    exit_code: int | None = None
    numbers: list[int] = field(default_factory=list)


def read_wandb(path: Path) -> WandbFile:
    result = WandbFile()
    for payload in payloads(path.read_bytes()):
        record = pb.Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        result.kinds.append(kind)
        result.numbers.append(record.num)
        if kind == "run":
            assert result.run is None
            result.run = record.run
            result.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            keys = [item.nested_key[0] for item in record.history.item]
            assert len(keys) == len(set(keys))
            row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            assert record.history.step.num == row["_step"]
            result.history.append(row)
            result.texts.append({item.nested_key[0]: item.value_json for item in record.history.item})
        elif kind == "summary":
            result.summary.update({item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update})
        elif kind == "metric":
            result.metrics[record.metric.name] = record.metric.step_metric
        elif kind == "files":
            result.files += [item.path for item in record.files.files]
        elif kind == "request":
            result.artifacts.append(record.request.log_artifact)
        elif kind == "stats":
            assert record.stats.stats_type == pb.StatsRecord.StatsType.SYSTEM
            time = record.stats.timestamp.seconds * 1000 + record.stats.timestamp.nanos // 1_000_000
            keys = [item.key for item in record.stats.item]
            assert len(keys) == len(set(keys))
            result.system.append((time, {item.key: json.loads(item.value_json) for item in record.stats.item}))
        elif kind == "exit":
            result.exit_code = record.exit.exit_code
    return result

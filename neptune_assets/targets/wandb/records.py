"""Records of a W&B run, built with wandb's own protobuf classes; history rows are encoded by hand for speed.

The numbers of the fields that the history encoder writes come from wandb's descriptors, so that a release of wandb that
moves one is met with an error and not with a wrong file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from neptune_assets.errors import TargetError

MAX_EXACT: Final = 2**53
"""Whole numbers up to here are exact wherever JSON is read with 64-bit floats."""


@lru_cache(maxsize=1)
def protobuf() -> Any:
    """Return wandb's module of protobuf classes, imported when first needed."""
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2


def varint(number: int) -> bytes:
    """Return a non-negative number in protobuf's variable-length form."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field_bytes(number: int, payload: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def json_text(value: Any) -> str:
    """Return the JSON W&B keeps: compact, Unicode as it is, ``NaN`` and ``Infinity`` as words."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=True)


def number_text(value: float) -> str:
    """Return a float as W&B writes it; negative zero keeps its sign when it is read as a float again."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


@dataclass(frozen=True, slots=True)
class ItemFields:
    """Field numbers of an item, a key with its value as JSON, and of the record that has items."""

    item: int
    key: int
    value_json: int


@dataclass(frozen=True, slots=True)
class HistoryFields:
    """Field numbers of what a history row is made of."""

    num: int
    history: int
    step: int
    step_num: int
    items: ItemFields


@dataclass(frozen=True, slots=True)
class StatsFields:
    """Field numbers of what a record of system metrics is made of."""

    num: int
    stats: int
    timestamp: int
    items: ItemFields


@lru_cache(maxsize=1)
def history_fields() -> HistoryFields:
    """Look the field numbers up in wandb's descriptors. Raises TargetError if this wandb has other fields."""
    pb = protobuf()
    record, row, item = _numbers(pb.Record), _numbers(pb.HistoryRecord), _numbers(pb.HistoryItem)
    return HistoryFields(
        num=record["num"],
        history=record["history"],
        step=row["step"],
        step_num=_numbers(pb.HistoryStep)["num"],
        items=ItemFields(row["item"], item["nested_key"], item["value_json"]),
    )


@lru_cache(maxsize=1)
def stats_fields() -> StatsFields:
    """Look the field numbers up in wandb's descriptors. Raises TargetError if this wandb has other fields."""
    pb = protobuf()
    record, row, item = _numbers(pb.Record), _numbers(pb.StatsRecord), _numbers(pb.StatsItem)
    return StatsFields(
        num=record["num"],
        stats=record["stats"],
        timestamp=row["timestamp"],
        items=ItemFields(row["item"], item["key"], item["value_json"]),
    )


class _Numbers(dict[str, int]):
    """Field numbers of a message by name; a name that the installed wandb does not have is a TargetError."""

    def __missing__(self, name: str) -> int:
        raise TargetError(
            f"The installed wandb knows no record field {name!r}.", hint="Install a version of wandb from 0.31 on."
        )


def _numbers(message: Any) -> _Numbers:
    return _Numbers((field.name, field.number) for field in message.DESCRIPTOR.fields)


def header(producer: str) -> Any:
    """Return the first record of a file; ``producer`` is the wandb version whose records these are."""
    record = protobuf().Record()
    record.header.version_info.producer = producer
    record.header.version_info.min_consumer = "0.70.0"
    return record


def run(
    *,
    run_id: str,
    entity: str,
    project: str,
    name: str,
    group: str,
    job_type: str,
    notes: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    start_ms: int | None,
) -> Any:
    """Return the record that names the run. No host, program, telemetry or git: those would be this machine's."""
    record = protobuf().Record()
    made = record.run
    made.run_id, made.entity, made.project, made.display_name = run_id, entity, project, name
    made.run_group, made.job_type, made.notes = group, job_type, notes
    made.tags.extend(tags)
    for key, value in config.items():
        made.config.update.add(key=key, value_json=json_text(value))
    if start_ms is not None:
        made.start_time.seconds, milliseconds = divmod(start_ms, 1000)
        made.start_time.nanos = milliseconds * 1_000_000
    return record


def step_axis(axis: str, keys: Iterable[str]) -> Iterable[Any]:
    """Yield the records that make ``axis`` the x axis of every key, and itself no metric to be drawn."""
    pb = protobuf()
    record = pb.Record()
    record.metric.name = axis
    record.metric.options.hidden = True
    record.metric.options.defined = True
    yield record
    for key in keys:
        record = pb.Record()
        record.metric.name = key
        record.metric.step_metric = axis
        record.metric.options.step_sync = True
        record.metric.options.defined = True
        yield record


def files(paths: Iterable[str], *, media: bool) -> Any:
    """Return the record that has files of the run's ``files`` directory uploaded."""
    pb = protobuf()
    record = pb.Record()
    kind = pb.FilesItem.FileType.Value("MEDIA" if media else "OTHER")
    for path in paths:
        record.files.files.add(path=path, policy=pb.FilesItem.PolicyType.Value("NOW"), type=kind)
    return record


def summary(values: Mapping[str, str]) -> Any:
    """Return the record with the run's last values; ``values`` are JSON texts by key."""
    record = protobuf().Record()
    for key, value in values.items():
        record.summary.update.add(nested_key=[key], value_json=value)
    return record


def finish(exit_code: int, runtime: int) -> Any:
    """Return the last record: how the run ended and how many seconds it took."""
    record = protobuf().Record()
    record.exit.exit_code = exit_code
    record.exit.runtime = max(runtime, 0)
    return record

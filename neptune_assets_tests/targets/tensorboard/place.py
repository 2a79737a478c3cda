"""What a TensorBoard directory holds, read by tensorboard's own classes and none of the target's code."""

from __future__ import annotations

import json
import math
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.util import tensor_util

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.tensorboard.load import TensorboardTarget
from neptune_assets.targets.tensorboard.settings import TensorboardSettings
from neptune_assets_tests.conformance.targets import Held, Place


class EventFiles(Place):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.logdir = root / "lake" / "tensorboard"

    def open(self) -> TensorboardTarget:
        return TensorboardTarget(TensorboardSettings(), LakeSettings(root=str(self.root / "lake")))

    def directories(self) -> list[Path]:
        return sorted(path.parent for path in self.logdir.rglob("*tfevents*"))

    def held(self, project_id: str) -> dict[str, list[Held]]:
        result: dict[str, list[Held]] = {}
        for directory in self.directories():
            project, run_id, held = held_run(directory, directory.relative_to(self.logdir).as_posix())
            if project == project_id:
                result.setdefault(run_id, []).append(held)
        return result

    def damage(self, project_id: str, run_id: str) -> None:
        for directory in self.directories():
            if held_run(directory, "")[:2] == (project_id, run_id):
                (file,) = directory.glob("*tfevents*")
                content, kept, place, lost = file.read_bytes(), b"", 0, False
                while place < len(content):
                    (size,) = struct.unpack_from("<Q", content, place)
                    record = content[place : place + size + 16]
                    if b"\x0a\x01m\x15" in record and not lost:
                        lost = True
                    else:
                        kept += record
                    place += size + 16
                assert lost
                file.write_bytes(kept)

    def state(self) -> Any:
        return {
            str(path.relative_to(self.logdir)): (path.stat().st_mtime_ns, path.stat().st_ino)
            for path in self.logdir.rglob("*")
            if path.is_file()
        }


def hparams(accumulator: EventAccumulator, tag: str) -> plugin_data_pb2.HParamsPluginData:
    return plugin_data_pb2.HParamsPluginData.FromString(accumulator.SummaryMetadata(tag).plugin_data.content)


def held_run(directory: Path, name: str) -> tuple[str, str, Held]:
    """Everything one run holds, as (project, run id, content)."""
    accumulator = EventAccumulator(str(directory), size_guidance={SCALARS: 0, TENSORS: 0})
    accumulator.Reload()
    start = hparams(accumulator, "_hparams_/session_start_info").session_start_info
    end = hparams(accumulator, "_hparams_/session_end_info").session_end_info
    values = {key: getattr(held, held.WhichOneof("kind")) for key, held in start.hparams.items()}
    marker = directory / "neptune_assets" / "index.json"
    index = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    held = Held(name, index.get("digest"))
    held.params = {path: values[key] for path, _, key in index.get("parameters", ())}
    multiplier = int(values.get("neptune_assets/step_multiplier", 1))
    exact: dict[tuple[str, Decimal], tuple[float, int | None]] = {}
    copy = pq.read_table(directory / "neptune_assets" / "series.parquet")
    stamps = copy["timestamp"].cast(pa.int64()).to_pylist()
    for row, stamp in zip(copy.drop_columns(["timestamp"]).to_pylist(), stamps, strict=True):
        if row["attribute_type"] == "float_series":
            exact[row["attribute_path"], row["step"]] = (row["float_value"], stamp)
    for path, kind, tag in index.get("tags", ()):
        if kind == "float_series":
            for event in accumulator.Scalars(tag) if tag in accumulator.Tags()["scalars"] else ():
                step, content = Decimal(event.step) / multiplier, np.float32(event.value)
                value, stamp = exact.get((path, step), (float(content), round(event.wall_time * 1000)))
                value = math.nan if value is None else value
                with np.errstate(over="ignore"):
                    assert np.float32(value).tobytes() == content.tobytes() or np.isnan([value, content]).all()
                assert stamp is None or event.wall_time == stamp / 1000
                held.points.setdefault(path, []).append((step, value, stamp))
            continue
        for event in accumulator.Tensors(tag) if tag in accumulator.Tags()["tensors"] else ():
            step, content = Decimal(event.step) / multiplier, tensor_util.make_ndarray(event.tensor_proto)
            if kind == "string_series":
                held.texts.setdefault(path, []).append((step, content[0].decode("utf-8")))
            elif kind == "histogram_series":
                edges = [*content[:, 0].tolist(), float(content[-1, 1])]
                held.histograms.setdefault(path, []).append((step, edges, content[:, 2].tolist()))
    for item in index.get("files", ()):
        part = item["member"] or ("" if item["step"] is None else str(item["step"]))
        held.files.setdefault(item["attribute_path"], {})[part] = (directory / item["path"]).read_bytes()
    held.tags = set(json.loads(held.params.get("sys/tags", "[]")))
    held.group_tags = set(json.loads(held.params.get("sys/group_tags", "[]")))
    held.failed = end.status == api_pb2.STATUS_FAILURE
    held.description = held.params.get("sys/description")
    held.start_ms = round(start.start_time_secs * 1000)
    held.parent = values.get("neptune_assets/parent")
    held.fork_step = Decimal(values["neptune_assets/fork_step"]) if "neptune_assets/fork_step" in values else None
    return values["neptune_assets/project_id"], values["neptune_assets/run_id"], held

"""What a staged W&B run holds, decoded without any of the target's own code."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets_tests.conformance.targets import Held
from neptune_assets_tests.support.wandb_files import read_wandb

OWN = {"_step", "_timestamp", "_runtime", "neptune_step"}


def number(value: Any) -> float:
    return float(value)


def held_run(directory: Path) -> tuple[str, str, Held]:
    """Everything one staged run holds, as (project, run id, content)."""
    (log,) = directory.glob("*.wandb")
    found = read_wandb(log)
    files = directory / "files"
    index = json.loads((files / "neptune_assets/index.json").read_text())
    origin = found.config["neptune_assets"]
    held = Held(found.run.run_id, found.summary["neptune_assets"]["digest"])
    if not (directory / "neptune_assets.json").exists():
        held.digest = None
    names = {item["key"]: (item["path"], item["type"]) for item in index["names"] if "key" in item}
    for item in index["names"]:
        if "config" in item:
            place: Any = found.config
            for part in item["config"]:
                place = place[part]
            held.params[item["path"]] = place
    times: dict[tuple[str, Decimal], int | None] = {}
    if (files / "neptune_assets/series.parquet").exists():
        exact = pq.read_table(files / "neptune_assets/series.parquet")
        stamps = exact["timestamp"].cast(pa.int64()).to_pylist()
        for row, stamp in zip(exact.drop_columns(["timestamp"]).to_pylist(), stamps, strict=True):
            if row["attribute_type"] == "float_series":
                times[row["attribute_path"], row["step"]] = stamp
    for row in found.texts:
        own_step = row.get("neptune_step")
        step = Decimal(own_step) if own_step else Decimal(row["_step"]) / origin["step_multiplier"]
        when = round(Decimal(row["_timestamp"]) * 1000)
        for key, text in row.items():
            if key in OWN:
                continue
            path, kind = names[key]
            value = json.loads(text)
            if kind == "float_series":
                own = times.get((path, step), when)
                held.points.setdefault(path, []).append((step, number(value), own))
            elif kind == "histogram_series":
                assert value["_type"] == "histogram"
                held.histograms.setdefault(path, []).append((step, value["bins"], value["values"]))
            elif kind == "string_series":
                assert value["_type"] == "table-file"
                table = json.loads((files / value["path"]).read_text(encoding="utf-8"), parse_float=Decimal)
                held.texts.setdefault(path, []).extend((Decimal(str(r[0])), r[2]) for r in table["data"])
    for item in index["files"]:
        if item["attribute_type"] == "string_series":
            continue
        name = item["member"] or ("" if item["step"] is None else str(Decimal(item["step"]) / 1_000_000))
        assert item["path"] in found.files
        held.files.setdefault(item["attribute_path"], {})[name] = (files / item["path"]).read_bytes()
    held.tags = {tag for tag in found.run.tags if not tag.startswith("group:")}
    held.group_tags = {tag.removeprefix("group:") for tag in found.run.tags if tag.startswith("group:")}
    held.failed = found.exit_code != 0
    held.description = found.run.notes or None
    held.start_ms = found.run.start_time.seconds * 1000 + found.run.start_time.nanos // 1_000_000
    held.parent = origin.get("parent")
    held.fork_step = Decimal(origin["fork_step"]) if "fork_step" in origin else None
    return origin["project_id"], origin["run_id"], held

"""System metrics in W&B's own section, and job types. Real lake, real files, real ``wandb sync`` to a local stub."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb.codec import LogWriter
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.targets.wandb.staged_runs import read_synced, write_marker
from neptune_assets_tests.support.lake_factory import START, make_lake, metric, param
from neptune_assets_tests.support.wandb_files import payloads, pb
from neptune_assets_tests.support.wandb_staged import stage
from neptune_assets_tests.support.wandb_stub import WandbStub

KEY = "k3y" + "0123456789abcdef" * 4
BORN_MS = int(START.timestamp() * 1000)


def point(path: str, step: Any, time: datetime | None, value: float) -> dict[str, Any]:
    (row,) = metric(path, [value], [step])
    return {**row, "timestamp": time}


def at(milliseconds: int) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


ROWS = [
    param("sys/creation_time", START),
    *metric("loss", [3.0, 2.0], [0, 1]),
    point("monitoring/5af3/cpu", 0, at(1), 12.5),
    point("monitoring/5af3/cpu", 1, at(10_001), math.nan),
    point("monitoring/5af3/cpu", 2, at(10_001), -0.0),
    point("monitoring/5af3/memory", 0, at(10_001), math.inf),
    point("monitoring/5af3/memory", 1, at(20_999), 1 / 3),
    point("monitoring/5af3/memory", 2, None, 7.0),
    point("monitoring/5af3/memory", 3, datetime(1969, 12, 31, tzinfo=UTC), 8.0),
    point("monitoring_of_mine", 0, at(5), 1.0),
]


def exactly(values: dict[str, float]) -> dict[str, str]:
    return {key: repr(float(value)) for key, value in values.items()}


def test_monitoring_goes_into_its_section_by_time_and_is_accounted_for(tmp_path: Path) -> None:
    found = stage(tmp_path, ROWS)
    assert [(time - BORN_MS, exactly(values)) for time, values in found.found.system] == [
        (1, {"5af3/cpu": "12.5"}),
        (10_001, {"5af3/cpu": "nan"}),
        (10_001, {"5af3/cpu": "-0.0", "5af3/memory": "inf"}),
        (20_999, {"5af3/memory": repr(1 / 3)}),
    ]
    history = {key for row in found.found.history for key in row if not key.startswith("_")}
    assert history == {"loss", "monitoring_of_mine"}
    assert not any(key.startswith(("monitoring/", "5af3")) for key in found.found.summary)
    assert found.receipt.written["float_series"] + found.receipt.mapped["float_series"] == 10
    assert found.receipt.mapped["float_series"] == 7 + 1  # and one that shares a step with another time
    assert any(note.startswith("5 points stand in the system metrics") for note in found.receipt.notes)
    assert any(note.startswith("2 points of system metrics have no time") for note in found.receipt.notes)
    rows = pq.read_table(found.directory / "files/neptune_assets/series.parquet").to_pylist()
    columns = ("attribute_path", "step", "timestamp", "float_value")
    kept = {tuple(repr(row[name]) for name in columns) for row in rows}
    assert {tuple(repr(row[name]) for name in columns[:2]) for row in rows} >= {
        (repr(row["attribute_path"]), repr(row["step"].quantize(Decimal("0.000001")))) for row in ROWS[3:]
    }
    assert {item[3] for item in kept if "cpu" in item[0]} == {"12.5", "nan", "-0.0"}


def test_the_plan_names_them_as_the_page_does(tmp_path: Path) -> None:
    run = make_lake(tmp_path / "lake", {"ws/p": {"R": ROWS}}).project("ws/p").run("R")
    plan = WandbTarget(WandbSettings(), LakeSettings(root=str(tmp_path / "lake"))).plan(run)
    assert plan.names["monitoring/5af3/cpu"] == "system.5af3/cpu"
    assert any("7 points of 2 series below monitoring/ go to the system metrics" in note for note in plan.notes)


@pytest.mark.parametrize("options", [{"system_metrics": "history"}, {"naming": "neptune-exporter"}])
def test_on_request_they_stay_in_the_history(tmp_path: Path, options: dict[str, Any]) -> None:
    found = stage(tmp_path, ROWS, **options)
    assert found.found.system == []
    key = "monitoring/5af3/cpu" if "system_metrics" in options else "monitoring_5af3_cpu"
    assert [(step, repr(float(value))) for step, value in found.series(key)] == [(0, "12.5"), (1, "nan"), (2, "-0.0")]


def test_another_choice_stages_the_run_anew(tmp_path: Path) -> None:
    lake = LakeSettings(root=str(tmp_path / "lake"))
    run = make_lake(tmp_path / "lake", {"ws/p": {"R": ROWS}}, settings=lake).project("ws/p").run("R")
    for options in ({}, {"system_metrics": "history"}, {"job_type": "train"}):
        target = WandbTarget(WandbSettings.model_validate(options), lake)
        before = target.find("ws/p", "R")
        assert before is None or before.digest is None
        target.replace(run, target.plan(run))
        after = target.find("ws/p", "R")
        assert after is not None
        assert after.digest == run.record.digest


def test_a_lost_point_of_a_system_metric_is_found(tmp_path: Path) -> None:
    lake = LakeSettings(root=str(tmp_path / "lake"))
    run = make_lake(tmp_path / "lake", {"ws/p": {"R": ROWS}}, settings=lake).project("ws/p").run("R")
    target = WandbTarget(WandbSettings(), lake)
    receipt = target.replace(run, target.plan(run))
    assert target.verify(run, receipt).ok
    (log,) = tmp_path.glob("lake/wandb/*/offline-run-*/*.wandb")
    found = [pb.Record.FromString(payload) for payload in payloads(log.read_bytes())]
    stats = [record for record in found if record.WhichOneof("record_type") == "stats"]
    stats[2].stats.item[0].value_json = "0"
    log.unlink()
    with LogWriter(log) as writer:
        for record in found:
            writer.append(record.SerializeToString())
    verdict = target.verify(run, receipt)
    assert [line for line in verdict.differences if line.startswith("5af3/cpu: system metrics differ")]


def test_many_are_sorted_by_time_across_series_and_files(tmp_path: Path) -> None:
    rows = [
        point(f"monitoring/h/{name}", step, at(step * 10 + place), float(step))
        for place, name in enumerate(["a", "b", "c"])
        for step in range(800)
    ]
    found = stage(tmp_path, rows, lake={"rows_in_memory": 1_000})
    times = [time - BORN_MS for time, _ in found.found.system]
    assert times == sorted(times)
    assert len(times) == 2_400
    for place, name in enumerate(["a", "b", "c"]):
        of_one = [(time - BORN_MS, v[f"h/{name}"]) for time, v in found.found.system if f"h/{name}" in v]
        assert of_one == [(step * 10 + place, float(step)) for step in range(800)]


def arrived(stub: WandbStub) -> list[tuple[float, dict[str, str]]]:
    """What the stub has of system metrics: seconds since the start, values by key; whole zeros without a sign."""
    (sent,) = stub.runs.values()
    return [
        (
            round(row["_timestamp"] - START.timestamp(), 3),
            exactly({key: value or 0.0 for key, value in row.items() if key.startswith("system.")}),
        )
        for row in sent.system()
    ]


def test_they_arrive_and_a_second_upload_doubles_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    lake = LakeSettings(root=str(tmp_path / "lake"))
    run = make_lake(tmp_path / "lake", {"ws/p": {"R": ROWS}}, settings=lake).project("ws/p").run("R")
    expected = [
        (0.001, {"system.5af3/cpu": "12.5"}),
        (10.001, {"system.5af3/cpu": "nan"}),
        (10.001, {"system.5af3/cpu": "0.0", "system.5af3/memory": "inf"}),
        (20.999, {"system.5af3/memory": repr(1 / 3)}),
    ]
    with WandbStub(KEY) as stub:
        settings = WandbSettings(api_key_env="MY_WANDB_KEY", base_url=stub.url, job_type="train")
        target = WandbTarget(settings, lake)
        target.check()
        receipt = target.replace(run, target.plan(run))
        assert target.verify(run, receipt).ok
        (sent,) = stub.runs.values()
        assert sent.upserts[0]["jobType"] == "train"
        assert arrived(stub) == expected
        assert [row["_runtime"] for row in sent.system()] == pytest.approx([time for time, _ in expected])

        # As if the load had died before W&B had all of them: the history is there, a row of system metrics is not.
        del sent.events[3]
        (directory,) = (tmp_path / "lake/wandb").glob("*/offline-run-*")
        synced = read_synced(directory)
        assert synced is not None
        write_marker(directory, replace(synced, confirmed=False))
        assert target.verify(run, receipt).differences == ("W&B has 3 rows of system metrics of 4",)
        receipt = target.replace(run, target.plan(run))
        assert target.verify(run, receipt).ok
        assert arrived(stub) == expected
        assert [row["_step"] for row in sent.rows()] == [0, 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ""),
        ({"job_type": "train"}, "train"),
        ({"job_type_attribute": "stage"}, "evaluation"),
        ({"job_type": "train", "job_type_attribute": "nowhere"}, "train"),
        ({"job_type_attribute": "sys/name"}, "b" * 119 + "-"),
    ],
)
def test_job_types(tmp_path: Path, options: dict[str, str], expected: str) -> None:
    rows = [param("stage", "evaluation"), param("sys/name", "b" * 200)]
    job_type = stage(tmp_path, rows, **options).found.run.job_type
    assert job_type.startswith(expected)
    assert len(job_type) == (128 if expected.startswith("b") else len(expected))

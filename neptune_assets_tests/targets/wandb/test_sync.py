"""Uploading: real client, local stub. The real ``wandb sync`` uploads what was staged to a stub of the W&B API."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.lake.reader import LakeRun
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb import client
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.support.lake_factory import START, files, histograms, make_lake, metric, param, params, texts
from neptune_assets_tests.support.wandb_files import read_wandb
from neptune_assets_tests.support.wandb_stub import WandbStub

KEY = "k3y" + "0123456789abcdef" * 4
ROWS = [
    *params({"sys/tags": ["a"], "sys/failed": True, "opt/lr": 0.1, "big": 2**63 - 1, "text": "ü\x00"}),
    param("sys/creation_time", START),
    *metric("train/loss", [1.0, math.nan, -0.0, 0.1], ["0", "0.29", "0.57", "0.58"]),
    *metric("acc.val", [0.5, 0.75], [0, 2]),
    *histograms("h", [([0.0, 1.0, 2.0], [1.0, 2.5])], ["0.57"]),
    *texts("logs", ["one", "two\n"]),
    *files("dump", [b"x", b"yy"], [0, 1]),
]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStub]:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    with WandbStub(KEY) as server:
        yield server


def opened(root: Path, stub: WandbStub) -> WandbTarget:
    settings = WandbSettings(api_key_env="MY_WANDB_KEY", base_url=stub.url, entity="team")
    return WandbTarget(settings, LakeSettings(root=str(root / "lake")))


def lake_run(root: Path, rows: object = ROWS) -> LakeRun:
    return make_lake(root / "lake", {"ws/proj": {"RUN-1": rows}}).project("ws/proj").run("RUN-1")  # type: ignore[dict-item]


def staged(root: Path) -> Path:
    (directory,) = (root / "lake/wandb").glob("*/offline-run-*")
    return directory


def test_what_arrives_is_what_was_logged_and_once(tmp_path: Path, stub: WandbStub) -> None:
    run = lake_run(tmp_path)
    target = opened(tmp_path, stub)
    target.check()
    receipt = target.replace(run, target.plan(run))
    assert target.verify(run, receipt).ok
    found = target.find("ws/proj", "RUN-1")
    assert found is not None
    assert found.digest == run.record.digest

    (sent,) = stub.runs.values()
    assert (sent.entity, sent.project, sent.name, sent.exit_code) == ("team", "proj", receipt.target_id, 1)
    rows = sent.rows()
    losses = [(row["neptune_step"], row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert any(re.search(r'"train/loss":-0[,}]', line) for line in sent.history.values())
    assert [item[:2] for item in losses] == [(0, 0), (0.29, 29), (0.57, 57), (0.58, 58)]
    assert [str(float(value)) for *_, value in losses] == ["1.0", "nan", "0.0", "0.1"]
    assert [(row["_step"], row["acc.val"]) for row in rows if "acc.val" in row] == [(0, 0.5), (200, 0.75)]
    assert [(row["_step"], row["h"]) for row in rows if "h" in row] == [
        (57, {"_type": "histogram", "values": [1, 2.5], "bins": [0, 1, 2]})
    ]
    assert rows[0]["_timestamp"] == START.timestamp()
    (table,) = [row["logs"] for row in rows if "logs" in row]
    assert [line[2] for line in json.loads(sent.files[table["path"]])["data"]] == ["one", "two\n"]
    assert sorted(data for name, data in sent.files.items() if name.startswith("neptune/")) == [b"x", b"yy"]
    config = sent.config()
    assert (config["opt"], config["big"], config["text"]) == ({"lr": 0.1}, 2**63 - 1, "ü\x00")
    first = sent.upserts[0]
    assert (first["host"], first["commit"], first["repo"], first["tags"]) == (None, None, None, ["a"])
    assert first["program"] in (None, "", "neptune")
    assert json.loads(sent.summary)["neptune_assets"] == {"digest": run.record.digest}
    assert not any("metadata" in name or "requirements" in name or name == "output.log" for name in sent.files)
    assert stub.unknown == []

    # the same digest is not sent again
    requests = sent.history_requests
    again = opened(tmp_path, stub)
    assert again.replace(run, again.plan(run)).digest == receipt.digest
    found = again.find("ws/proj", "RUN-1")
    assert found is not None
    assert found.digest == run.record.digest

    # even if everything this side knows is lost, nothing is doubled
    (staged(tmp_path) / "synced.json").unlink()
    forgotten = opened(tmp_path, stub)
    found = forgotten.find("ws/proj", "RUN-1")
    assert found is not None
    assert found.digest is None
    forgotten.replace(run, forgotten.plan(run))
    assert list(stub.runs) == [receipt.target_id]
    assert len(sent.rows()) == len(rows)
    assert sent.history_requests == requests
    assert [row["_step"] for row in sent.rows()] == [row["_step"] for row in rows]


def test_a_grown_run_goes_on_and_a_changed_one_is_refused(tmp_path: Path, stub: WandbStub) -> None:
    first = lake_run(tmp_path, metric("m", [1.0, 2.0]))
    target = opened(tmp_path, stub)
    target.replace(first, target.plan(first))
    grown = lake_run(tmp_path, [*metric("m", [1.0, 2.0, 6.0]), param("p", 1)])
    found = target.find("ws/proj", "RUN-1")
    assert found is not None
    assert found.digest != grown.record.digest
    receipt = target.replace(grown, target.plan(grown))
    assert target.verify(grown, receipt).ok
    (sent,) = stub.runs.values()
    assert [row["m"] for row in sent.rows()] == [1, 2, 6]
    assert sent.config()["p"] == 1
    for rows in (metric("m", [1.0]), metric("m", [1.0, 5.0, 6.0])):
        changed = lake_run(tmp_path, rows)
        with pytest.raises(TargetError, match="neither change nor remove"):
            target.replace(changed, target.plan(changed))
        found = target.find("ws/proj", "RUN-1")
        assert found is not None
        assert found.digest is None
        assert [row["m"] for row in sent.rows()] == [1, 2, 6]
    with pytest.raises(TargetError, match="uploaded"):
        target.remove("ws/proj", "RUN-1")


@pytest.mark.parametrize("arrived", [1, 3])
def test_an_upload_that_broke_off_goes_on_where_it_was(tmp_path: Path, stub: WandbStub, arrived: int) -> None:
    run = lake_run(tmp_path, [*metric("m", [1.0, 2.0, 3.0]), *texts("t", ["x"])])
    target = opened(tmp_path, stub)
    receipt = target.replace(run, target.plan(run))
    (sent,) = stub.runs.values()
    sent.history = {number: line for number, line in sent.history.items() if number < arrived}
    sent.summary = "{}"
    marker = staged(tmp_path) / "synced.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "confirmed": False}))
    assert target.replace(run, target.plan(run)) == receipt
    assert [row["m"] for row in sent.rows()] == [1, 2, 3]
    assert target.verify(run, receipt).ok
    assert not list((tmp_path / "lake/wandb/.staging").glob("*/*"))


def test_what_the_server_refuses_is_an_error_and_is_healed(
    tmp_path: Path, stub: WandbStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONFIRM_SECONDS", 1.0)
    run = lake_run(tmp_path, metric("m", [1.0, 2.0]))
    target = opened(tmp_path, stub)
    stub.refuse_upsert = f"entity not found for {KEY}"
    with pytest.raises(TargetError, match="no such run") as caught:
        target.replace(run, target.plan(run))
    assert KEY not in str(caught.value)
    found = target.find("ws/proj", "RUN-1")
    assert found is not None
    assert found.digest is None
    stub.refuse_upsert = None
    before = staged(tmp_path).stat().st_ino
    receipt = target.replace(run, target.plan(run))
    assert staged(tmp_path).stat().st_ino == before
    assert target.verify(run, receipt).ok
    (sent,) = stub.runs.values()
    sent.history.popitem()
    verdict = target.verify(run, receipt)
    assert any("history rows" in line for line in verdict.differences)


def test_the_key_must_be_there_and_right(tmp_path: Path, stub: WandbStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_WANDB_KEY", "wrong" * 8)
    with pytest.raises(TargetError, match="does not accept the key in MY_WANDB_KEY") as caught:
        opened(tmp_path, stub).check()
    assert "wrong" not in str(caught.value)
    assert "wrong" not in repr(client.WandbClient(WandbSettings(api_key_env="MY_WANDB_KEY")))
    monkeypatch.delenv("MY_WANDB_KEY")
    with pytest.raises(TargetError, match="MY_WANDB_KEY is not set"):
        opened(tmp_path, stub)


def test_a_server_that_is_away_is_worth_another_try(tmp_path: Path, stub: WandbStub) -> None:
    target = opened(tmp_path, stub)
    stub.server.server_close()
    stub.server.shutdown()
    with pytest.raises(TargetUnavailableError, match="does not answer"):
        target.check()


def test_the_uploaded_file_is_not_changed_by_uploading(tmp_path: Path, stub: WandbStub) -> None:
    run = lake_run(tmp_path, metric("m", [1.0]))
    target = opened(tmp_path, stub)
    receipt = target.replace(run, target.plan(run))
    (log,) = staged(tmp_path).glob("*.wandb")
    assert read_wandb(log).history[0]["m"] == 1.0
    assert target.verify(run, receipt).ok

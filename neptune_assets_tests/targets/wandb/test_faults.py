"""Faults on the wire to W&B: what can heal is tried again and doubles nothing, the rest fails once and clearly.

Real client, local stub: the real ``wandb sync`` against a stub of the W&B API that answers badly.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import TargetError
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.report import LoadReport
from neptune_assets.targets.wandb import client
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.testing.targets import PROJECT, load
from neptune_assets_tests.support.lake_factory import files, make_lake, metric, param, texts
from neptune_assets_tests.support.wandb_stub import WandbStub

KEY = "k3y" + "0123456789abcdef" * 4
VALUES = [n / 7 for n in range(40)]


class OnlinePlace:
    def __init__(self, root: Path, stub: WandbStub) -> None:
        self.root, self.stub = root, stub

    def open(self) -> WandbTarget:
        settings = WandbSettings(api_key_env="MY_WANDB_KEY", base_url=self.stub.url, entity="team")
        return WandbTarget(settings, LakeSettings(root=str(self.root / "lake")))

    def load(self) -> LoadReport:
        self.pauses: list[float] = []
        return load(self, self.root, sleep=self.pauses.append)  # type: ignore[arg-type]

    def arrived(self) -> None:
        """Everything is there, once."""
        (sent,) = self.stub.runs.values()
        assert [row["m"] for row in sent.rows() if "m" in row] == VALUES
        assert [row["_step"] for row in sent.rows()] == list(range(len(VALUES)))
        assert sorted(data for name, data in sent.files.items() if name.startswith("neptune/")) == [b"x", b"yy"]
        assert sent.config()["p"] == 1
        again = self.load()
        assert (again.loaded, again.skipped, again.ok) == ([], ["RUN-1"], True)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnlinePlace]:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    monkeypatch.setattr(client, "_REQUEST_SECONDS", 1)
    rows = [param("p", 1), *metric("m", VALUES), *texts("t", ["one"]), *files("dump", [b"x", b"yy"])]
    make_lake(tmp_path / "lake", {PROJECT: {"RUN-1": rows}})
    with WandbStub(KEY) as stub:
        yield OnlinePlace(tmp_path, stub)


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", "lose", "cut", "hang"])
def test_a_server_that_stumbles_while_it_is_asked_is_asked_again(place: OnlinePlace, fault: Any) -> None:
    original = WandbTarget.replace  # the load's own check is answered, the first question about the run is not

    def stumbling(self: WandbTarget, *args: Any) -> Any:
        if not place.pauses:
            place.stub.faults["graphql"] = [fault]
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WandbTarget, "replace", stumbling)
        report = place.load()
    assert report.ok, report.failed
    assert report.loaded == ["RUN-1"]
    assert len(place.pauses) == 1
    place.arrived()


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        ("stream", [500]),
        ("stream", [503, 429]),
        ("stream", ["drop"]),
        ("stream", ["lose"]),
        ("put", [503]),
        ("put", ["drop"]),
    ],
)
def test_faults_during_an_upload_lose_and_double_nothing(place: OnlinePlace, kind: str, faults: list[Any]) -> None:
    place.stub.faults[kind] = list(faults)
    report = place.load()
    assert place.stub.faults[kind] == []
    assert report.ok, report.failed
    place.arrived()


def test_a_killed_sync_goes_on_where_it_was(place: OnlinePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    popen = subprocess.Popen

    def watched(*args: Any, **kwargs: Any) -> Any:
        process = popen(*args, **kwargs)
        groups.append(process.pid)
        return process

    def kill() -> None:
        if len(groups) == 1:
            # What was on its way does not arrive: in small runs it could be all there is.
            place.stub.faults["stream"] = ["drop"]
            with suppress(ProcessLookupError):
                os.killpg(groups[0], signal.SIGKILL)

    monkeypatch.setattr(subprocess, "Popen", watched)
    place.stub.on_stream = kill
    report = place.load()
    assert len(groups) == 2
    assert report.ok, report.failed
    assert len(place.pauses) == 1
    place.arrived()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_fails_once_and_clearly(
    place: OnlinePlace, status: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    place.stub.faults["graphql"] = [status]
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TargetError, match="does not accept the key in MY_WANDB_KEY") as caught:
        place.load()
    assert caught.value.transient is False
    assert place.pauses == []
    place.stub.faults["graphql"] = []
    original = WandbTarget.replace

    def refused(self: WandbTarget, *args: Any) -> Any:
        place.stub.faults["graphql"] = [status] * 50
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WandbTarget, "replace", refused)
        report = place.load()
    assert "does not accept the key in MY_WANDB_KEY" in report.failed["RUN-1"]
    assert report.transient is False
    assert place.pauses == []
    place.stub.faults["graphql"] = []
    assert place.load().loaded == ["RUN-1"]
    place.arrived()
    said = caplog.text + "".join(capfd.readouterr()) + str(report) + str(caught.value)
    assert KEY not in said
    for path in place.root.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


LOAD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from neptune_assets_tests.targets.wandb.test_faults import OnlinePlace
OnlinePlace(Path(sys.argv[1]), SimpleNamespace(url=sys.argv[2])).load()
"""


def test_a_load_killed_while_it_uploads_is_finished_by_the_next(place: OnlinePlace) -> None:
    began, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        go_on.wait(30)

    place.stub.on_stream = wait
    process = subprocess.Popen([sys.executable, "-c", LOAD, str(place.root), place.stub.url])
    assert began.wait(60)
    process.kill()
    process.wait()
    report = place.load()  # the tool that the killed load started has not ended
    assert "still goes on" in report.failed["RUN-1"]
    assert report.transient
    go_on.set()
    deadline = time.monotonic() + 60
    while not (report := place.load()).ok:
        assert "still goes on" in report.failed["RUN-1"]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    place.arrived()

"""Uploading leaves nothing in the system's temporary directory. Real client, local stub."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.report import LoadReport
from neptune_assets.targets.wandb.history import HistoryEncoder
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.tempdirs import TempDirectory
from neptune_assets_tests.support.lake_factory import files, make_lake, metric
from neptune_assets_tests.support.wandb_stub import WandbStub

KEY = "k3y" + "0123456789abcdef" * 4


def test_what_a_killed_load_staged_is_removed_by_the_next_load(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", {"ws/proj": {"RUN-1": metric("m", [1.0])}})
    staging = tmp_path / "wandb"

    def load() -> LoadReport:
        return load_project(
            lake.project("ws/proj"),
            lambda: WandbTarget(WandbSettings(staging=str(staging)), lake.settings),
            Ledger(lake.settings, "wandb", "ws/proj"),
        )

    assert load().loaded == ["RUN-1"]
    before = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
    # Where a load stages, found by one that is killed in the middle of it.
    child = os.fork()
    if child == 0:
        run = lake.project("ws/proj").run("RUN-1")
        target = WandbTarget(WandbSettings(staging=str(staging)), lake.settings)
        HistoryEncoder.records = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        target.replace(run, target.plan(run))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()} > before
    assert load().skipped == ["RUN-1"]
    assert {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", {"ws/proj": {"RUN-1": metric("m", [float(n) for n in range(20_000)])}})
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, 8_192))
            report = load_project(
                lake.project("ws/proj"),
                lambda: WandbTarget(WandbSettings(staging=str(tmp_path / "wandb")), lake.settings),
                Ledger(lake.settings, "wandb", "ws/proj"),
            )
            status = 0 if "Make room on that disk" in report.failed["RUN-1"] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_upload_leaves_no_log_and_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    lake = make_lake(tmp_path / "lake", {"ws/proj": {"RUN-1": [*metric("m", [1.0, 2.0]), *files("f", [b"x"], [0])]}})
    run = lake.project("ws/proj").run("RUN-1")
    # A short path, because the tool puts a socket there.
    with WandbStub(KEY) as stub, TempDirectory("t") as temporary:
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        settings = WandbSettings(api_key_env="MY_WANDB_KEY", base_url=stub.url, entity="team")
        target = WandbTarget(settings, LakeSettings(root=str(tmp_path / "lake")))
        receipt = target.replace(run, target.plan(run))
        assert target.verify(run, receipt).ok
        assert len(stub.runs) == 1
        # What importing the client made in this process is removed when the process ends.
        left = [path.name for path in temporary.iterdir() if not path.name.endswith(("wandb-media", "wandb-artifacts"))]
        assert left == []

"""Uploading leaves nothing in the system's temporary directory. Real client, local stub."""

from __future__ import annotations

from pathlib import Path

import pytest

from neptune_assets.scratch import ScratchDirectory
from neptune_assets.settings import LakeSettings
from neptune_assets.settings import WandbTarget as WandbSettings
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets_tests.support.lake_factory import files, make_lake, metric
from neptune_assets_tests.support.wandb_stub import WandbStub

KEY = "k3y" + "0123456789abcdef" * 4


def test_an_upload_leaves_no_log_and_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_WANDB_KEY", KEY)
    lake = make_lake(tmp_path / "lake", {"ws/proj": {"RUN-1": [*metric("m", [1.0, 2.0]), *files("f", [b"x"], [0])]}})
    run = lake.project("ws/proj").run("RUN-1")
    # A short path, because the tool puts a socket there.
    with WandbStub(KEY) as stub, ScratchDirectory("t") as temporary:
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

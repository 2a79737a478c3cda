"""TensorBoard keeps every target's promises, and its own server shows what was logged."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from neptune_assets.targets.tensorboard import TARGET
from neptune_assets.targets.times import iso
from neptune_assets.testing.lakes import files
from neptune_assets_tests.conformance.targets import (
    BORN_MS,
    PROJECT,
    TargetContract,
    born,
    histogram,
    load,
    ms,
    param,
    point,
    text,
)
from neptune_assets_tests.targets.tensorboard.place import EventFiles


class TestTensorboard(TargetContract):
    spec = TARGET
    place_class = EventFiles
    crash_points: ClassVar[Sequence[str]] = (
        "neptune_assets.targets.staged:StagedDirectories.new",
        "neptune_assets.targets.tensorboard.events:EventWriter.add",
        "neptune_assets.targets.tensorboard.events:EventWriter.scalars",
        "neptune_assets.targets.staged:StagedDirectories.discard",
        "neptune_assets.targets.staged:StagedDirectories.publish",
    )

    def held_param(self, kind: str, value: Any) -> Any:
        if kind == "int":
            return float(value) if abs(value) <= 2**53 else str(value)
        if kind == "float" and not math.isfinite(value):
            return repr(value)
        if isinstance(value, datetime):
            return iso(round(value.timestamp() * 1000))
        return json.dumps(sorted(value)) if kind == "string_set" else value

    def test_a_fork_begins_with_the_points_of_its_ancestors(self, place: EventFiles, tmp_path: Path) -> None:
        def fork(of: str, step: float, *rows: dict[str, Any]) -> Any:
            at = param("sys/forking/step", "float", step)
            return born(param("sys/forking/parent", "string", of), at, *rows)

        runs = {
            "C": fork("B", 3, point("m", 4, 34.0)),
            "B": fork("A", 1.5, point("m", 2, 22.0), point("m", 3, 23.0), point("m", 9, 29.0)),
            "A": born(*(point("m", step, 10.0 + step) for step in (0, 1, 2)), point("old", "0.5", 1.0)),
        }
        self.lake(tmp_path, runs)
        self.good(load(place, tmp_path))
        points = {path: [float(p[1]) for p in found] for path, found in held_points(place, "C").items()}
        assert points == {"m": [10.0, 11.0, 22.0, 23.0, 34.0], "old": [1.0]}
        self.lake(tmp_path, {**runs, "A": born(point("m", 0, 99.0))})
        assert sorted(self.good(load(place, tmp_path)).loaded) == ["A", "B", "C"]


def held_points(place: EventFiles, run_id: str) -> Any:
    return place.held(PROJECT)[run_id][0].points


PICTURES: list[bytes] = []
for shade in (0, 200):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(buffer, "PNG")
    PICTURES.append(buffer.getvalue())


@contextmanager
def server(logdir: Path, fast: str) -> Iterator[str]:
    """TensorBoard's own server over a directory; yields its address once it answers."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--port=0", "--host=127.0.0.1"]
    command += [f"--load_fast={fast}", "--samples_per_plugin=scalars=99999,text=99999,histograms=999,images=999"]
    with (logdir.parent / f"server-{fast}.log").open("w+") as log:
        process = subprocess.Popen([*command, "--reload_interval=1"], stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60
            while "http://" not in Path(log.name).read_text():
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
            yield "http://" + Path(log.name).read_text().partition("http://")[2].split("/")[0]
        finally:
            process.terminate()
            process.wait(30)


def ask(address: str, path: str, body: Any = None, **query: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    url = f"{address}/data/{path}?{urllib.parse.urlencode(query)}"
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("fast", ["true", "false"])
def test_its_own_server_shows_what_was_logged(tmp_path: Path, fast: str) -> None:
    case, place = TestTensorboard(), EventFiles(tmp_path)
    odd = [0.1, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e300]
    rows = born(
        *(point("m/odd", f"0.{step}", value, ms(step)) for step, value in enumerate(odd)),
        *(point("m/long", step, step / 3, ms(step)) for step in range(3_000)),
        text("logs/out", 0, "one"),
        text("logs/out", 1, "two\n| lines"),
        histogram("h", 0, [0.0, 0.1, 5.0], [1.0, 2.0]),
        *files("pictures", PICTURES, steps=["0", "1"], extension="png"),
        param("lr", "float", 0.1),
        param("big", "int", 2**63 - 1),
        param("sys/failed", "bool", True),
    )
    case.lake(tmp_path, {"R-1": rows})
    report = case.good(load(place, tmp_path))
    assert report.receipts[0].written["file_series"] == 2
    (run,) = [item.target_id for item in report.receipts]
    with server(place.logdir, fast) as address:
        end = time.monotonic() + 60
        while "pictures" not in ask(address, "plugin/images/tags").get(run, {}):
            assert time.monotonic() < end
            time.sleep(0.3)
        points = ask(address, "plugin/scalars/scalars", run=run, tag="m/odd")
        shown = ["0.10000000149011612", "NaN", "Infinity", "-Infinity", "-0.0", "0.0", "Infinity"]
        assert [(when, step) for when, step, _ in points] == [((BORN_MS / 1000) + n, n) for n in range(7)]
        assert [str(value) for _, _, value in points] == shown
        points = ask(address, "plugin/scalars/scalars", run=run, tag="m/long")
        assert [step for _, step, _ in points] == [step * 10 for step in range(3_000)]
        texts = ask(address, "plugin/text/text", run=run, tag="logs/out")
        assert [item["step"] for item in texts] == [0, 10]
        assert "one" in texts[0]["text"]
        ((when, step, bins),) = ask(address, "plugin/histograms/histograms", run=run, tag="h")
        assert (when, step, bins) == (BORN_MS / 1000, 0, [[0.0, 0.1, 1.0], [0.1, 5.0, 2.0]])
        images = ask(address, "plugin/images/images", run=run, tag="pictures", sample="0")
        assert [item["step"] for item in images] == [0, 10]
        for item, picture in zip(images, PICTURES, strict=True):
            with urllib.request.urlopen(f"{address}/data/plugin/images/individualImage?{item['query']}") as answer:
                assert answer.read() == picture
        wanted = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_FAILURE"]}
        groups = ask(address, "plugin/hparams/session_groups", {"experimentName": "", **wanted})
        (group,) = groups["sessionGroups"]
        assert (group["hparams"]["lr"], group["hparams"]["big"]) == (0.1, str(2**63 - 1))
        assert group["sessions"][0]["startTimeSecs"] == BORN_MS / 1000

from __future__ import annotations

import base64
import html
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neptune_assets.settings import SummarySettings
from neptune_assets.summary.picture import MAX_URI_BYTES, curves, escape, markdown_image, sample
from neptune_assets.summary.tables import Summary, summarize
from neptune_assets_tests.support import lake_factory as make

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://x.example/p.png)",
    "`code`\n# head",
    "$\\frac{",
    "$x$ \\",
    "n\x00ul",
    "\u202egnp.exe",
    "漢字 ü",
    "'\"--;",
    "x" * 1500,
    "www.example.com http://example.com a@b.example",
]


def summary_of(root: Path, runs: dict[str, list[make.Row]]) -> Summary:
    lake = make.make_lake(root, {"ws/p": runs})
    return summarize(lake.project("ws/p"), SummarySettings(memory_mb=128), lake.settings)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def near(image: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((np.abs(image.astype(int) - np.array(color)).max(axis=2) < 24).sum())


def test_a_picture_shows_the_curves_of_the_runs(tmp_path: Path) -> None:
    runs = {
        f"RUN-{n}": [row for name in "abcdef" for row in make.metric(name, [math.exp(-i / 50) + n for i in range(400)])]
        for n in range(12)
    }
    with summary_of(tmp_path, runs) as summary:
        png = curves(summary)
    assert png is not None
    image = pixels(png)
    assert image.shape[1] >= 480
    # Eight runs, so the first and the eighth colour are there; half of the picture is background.
    assert near(image, (0x1F, 0x77, 0xB4)) > 100
    assert near(image, (0x17, 0xBE, 0xCF)) > 100
    assert near(image, (255, 255, 255)) > image.shape[0] * image.shape[1] // 2
    text = markdown_image(png)
    assert len(text) <= MAX_URI_BYTES
    assert re.fullmatch(r"!\[metric curves\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)", text)
    assert base64.b64decode(text.partition("base64,")[2][:-1]) == png


def test_noise_still_fits(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    runs = {
        f"RUN-{n}": [row for name in "abcd" for row in make.metric(name, noise.normal(size=2000).tolist())]
        for n in range(3)
    }
    with summary_of(tmp_path, runs) as summary:
        png = curves(summary)
    assert png is not None
    assert len(markdown_image(png)) <= MAX_URI_BYTES


def test_values_that_cannot_be_drawn_do_not_matter(tmp_path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    rows = [
        *make.metric("all nan", [nan, nan]),
        *make.metric("mixed", [1.0, nan, inf, -inf, 1.7e308, -1.7e308, 2.0]),
        *make.metric("flat", [3.0, 3.0]),
        *make.metric("one point", [1.0]),
        *make.metric("far", [1.0, 2.0], ["-999999999999.999999", "999999999999.999999"]),
    ]
    with summary_of(tmp_path, {"r": rows}) as summary:
        png = curves(summary)
    assert png is not None
    assert near(pixels(png), (0x1F, 0x77, 0xB4)) > 20


@pytest.mark.parametrize(
    "rows", [[], [make.param("a", 1)], make.metric("m", [1.0]), make.metric("m", [float("nan")] * 3)]
)
def test_nothing_to_draw_is_no_picture(tmp_path: Path, rows: list[make.Row]) -> None:
    with summary_of(tmp_path, {"r": rows}) as summary:
        assert curves(summary) is None


def test_a_large_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        markdown_image(bytes(MAX_URI_BYTES))


def test_hostile_names_are_drawn_and_stay_in_their_cells(tmp_path: Path) -> None:
    runs = {name: [*make.metric(name, [1.0, 2.0]), make.param("sys/name", name)] for name in HOSTILE}
    with summary_of(tmp_path, runs) as summary:
        assert curves(summary) is not None
        text = sample(summary, rows=100)
    tables = [table.splitlines() for table in text.split("\n\n")]
    assert [len(table) - 2 for table in tables] == [len(HOSTILE), len(HOSTILE)]
    for table in tables:
        assert {len(line.split("|")) for line in table} == {7}
        for line in table[2:]:
            assert not re.search(r"[<>\[\]()`!*_\\$:@]", line)
            # Only what we wrote as numbers holds a dot or a comma.
            assert not re.search(r"[.,]\D", line)
    names = {html.unescape(line.split("|")[1]).strip() for line in tables[0][2:]}
    assert {"a|b", "<script>alert(1)</script>", "漢字 ü", "n\ufffdul", "\ufffdgnp.exe"} <= names


def test_escape_shows_the_same_text() -> None:
    printable = "".join(map(chr, range(32, 127)))
    assert html.unescape(escape(printable, 200)) == printable
    assert len(html.unescape(escape("x" * 500))) == 60


def test_an_empty_project_has_a_sample(tmp_path: Path) -> None:
    with summary_of(tmp_path, {}) as summary:
        assert sample(summary).count("\n") == 1

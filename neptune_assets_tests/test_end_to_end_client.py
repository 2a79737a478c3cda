"""What the real neptune-client logged, compared value by value with every place it ends up in, by readers not ours."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from PIL import Image

from neptune_assets_tests.conformance.targets import Held
from neptune_assets_tests.support import client_recorder as logged
from neptune_assets_tests.support.home import Home, bits, bring_home
from neptune_assets_tests.support.wandb_held import number

PROJECT = "team/old"
COLUMNS = {bool: "bool_value", int: "int_value", float: "float_value", str: "string_value", datetime: "datetime_value"}
KINDS = {bool: "bool", int: "int", float: "float", str: "string", datetime: "datetime"}
SERIES = ("m/points", "M/points", "m.points", "m/" + logged.LONG_NAME)
STEPS = [Decimal(str(step)) for _, step, *_ in logged.POINTS]
VALUES = [value for value, *_ in logged.POINTS]
MILLISECONDS = [milliseconds for *_, milliseconds in logged.POINTS]
TEXTS = [(Decimal(str(step)), text) for step, _, text in logged.TEXT_POINTS]
FILES = {
    "f/path": logged.FILES["model.bin"],
    "f/text": "text ☃".encode(),
    "f/bytes": logged.BYTES,
    "f/empty": b"",
    "f/a.b": b"dot",
    "f/a_b": b"line",
    "F/a.b": b"other case",
}
MEMBERS = {name: logged.FILES[name] for name in ("tree/a.txt", "tree/deep/b.txt", "model.bin")}
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
REFUSED = {*logged.REFUSED, "r/series"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("everything")
    (folder / "recordings").mkdir()
    logged.record("hostile", folder / "recordings")
    return bring_home(folder, {"paths": [str(folder / "recordings")], "project": PROJECT}, PROJECT)


@pytest.fixture(scope="module")
def run_id(home: Home) -> str:
    (folder,) = (home.root.parent / "recordings" / ".neptune" / "offline").iterdir()
    return "OFFLINE-" + folder.name.split("__")[1].replace("-", "")[:12]


@pytest.fixture(scope="module")
def rows(home: Home, run_id: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in home.lake(run_id):
        found.setdefault(row["attribute_path"], []).append(row)
    return found


def colour(data: bytes) -> Any:
    picture = Image.open(io.BytesIO(data))
    assert picture.size == logged.PICTURE_SIZE
    return picture.getpixel((0, 0))


def check_artifact(data: bytes) -> None:
    listed = {item["filePath"]: (item["fileHash"], item["size"]) for item in json.loads(data)}
    tree = {name.removeprefix("tree/"): data for name, data in logged.FILES.items() if name.startswith("tree/")}
    assert listed == {name: (hashlib.sha1(data).hexdigest(), len(data)) for name, data in tree.items()}


def same_single(held: Any, value: Any) -> bool:
    return bits(held) == bits(value) if isinstance(value, float) else held == value and type(held) is type(value)


def test_the_lake_holds_single_values(rows: dict[str, list[dict[str, Any]]]) -> None:
    for path, value in logged.SINGLES.items():
        (row,) = rows[path]
        assert row["attribute_type"] == KINDS[type(value)], path
        assert same_single(row[COLUMNS[type(value)]], value), path
        assert [name for name in COLUMNS.values() if row[name] is not None] == [COLUMNS[type(value)]], path
    assert set(rows["s/changed"][0]["string_set_value"]) == {"x", "", "z\n"}
    assert set(rows["sys/tags"][0]["string_set_value"]) == logged.TAGS
    assert rows["sys/name"][0]["string_value"] == "hostile ☃"
    assert not rows.keys() & REFUSED


def test_the_lake_holds_series(rows: dict[str, list[dict[str, Any]]]) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for path in SERIES:
        assert [row["step"] for row in rows[path]] == STEPS
        assert [bits(row["float_value"]) for row in rows[path]] == [bits(value) for value in VALUES]
        assert [row["timestamp"] for row in rows[path]] == [epoch + timedelta(milliseconds=ms) for ms in MILLISECONDS]
    numbered = [(row["step"], row["float_value"]) for row in rows["m/numbered"]]
    assert numbered == [(Decimal(0), 7.0), (Decimal(1), 8.0), (Decimal(2), 9.0)]
    assert [(row["step"], row["string_value"]) for row in rows["m/texts"]] == TEXTS
    times = [(row["timestamp"] - epoch) / timedelta(milliseconds=1) for row in rows["m/texts"]]
    assert times == [milliseconds for _, milliseconds, _ in logged.TEXT_POINTS]


def test_the_lake_holds_files(home: Home, rows: dict[str, list[dict[str, Any]]]) -> None:
    assert {path: home.file(rows[path][0]).read_bytes() for path in FILES} == FILES
    tree = home.file(rows["f/set"][0])
    assert {
        file.relative_to(tree).as_posix(): file.read_bytes() for file in tree.rglob("*") if file.is_file()
    } == MEMBERS
    check_artifact(home.file(rows["a/tracked"][0]).read_bytes())
    assert {row["step"]: colour(home.file(row).read_bytes()) for row in rows["i/images"]} == {
        Decimal(str(step)): COLOURS[name] for step, name in logged.PICTURES.items()
    }


def test_the_lake_holds_nothing_else(rows: dict[str, list[dict[str, Any]]]) -> None:
    logged_paths = {*logged.SINGLES, *SERIES, *FILES, "m/numbered", "m/texts", "s/changed"}
    own = {path for path in rows if not path.startswith(("sys/", "monitoring/", "source_code/"))}
    assert own == logged_paths | {"f/set", "a/tracked", "i/images"}


def test_the_summary_says_the_same(home: Home, run_id: str) -> None:
    metrics = {row["attribute_path"]: row for row in home.summary("metrics", run_id)}
    for path in SERIES:
        metric = metrics[path]
        assert (metric["count"], metric["nan_count"]) == (len(VALUES), 0)
        assert (metric["min_value"], metric["max_value"]) == (min(VALUES), max(VALUES))
        assert (metric["first_value"], metric["last_value"]) == (VALUES[0], VALUES[-1])
        assert (metric["first_step"], metric["last_step"]) == (STEPS[0], STEPS[-1])
    params = {row["attribute_path"]: row for row in home.summary("params", run_id)}
    for path, value in logged.SINGLES.items():
        assert same_single(params[path][COLUMNS[type(value)]], value), path
    sizes = {row["attribute_path"]: row["size"] for row in home.summary("files", run_id) if row["member"] is None}
    assert {path: sizes[path] for path in FILES} == {path: len(data) for path, data in FILES.items()}
    (run,) = home.summary("runs", run_id)
    assert run["name"] == "hostile ☃"


def test_mlflow_holds_the_same(home: Home, run_id: str) -> None:
    held = home.mlflow(run_id)
    for path, value in logged.SINGLES.items():
        if isinstance(value, datetime):
            assert datetime.fromisoformat(held.params[path]) == value
        elif isinstance(value, float):
            assert bits(float(held.params[path])) == bits(value), path
        else:
            assert held.params[path] == str(value), path
    check_held(held)


def test_wandb_files_hold_the_same(home: Home, run_id: str) -> None:
    held = home.wandb(run_id)
    for path, value in logged.SINGLES.items():
        if isinstance(value, datetime):
            assert datetime.fromisoformat(held.params[path]) == value
        elif isinstance(value, float):
            assert bits(number(held.params[path])) == bits(value), path
        else:
            assert same_single(held.params[path], value), path
    check_held(held)


def check_held(held: Held) -> None:
    """Everything but single values, which targets spell in their own ways."""
    for path in SERIES:
        assert [(step, bits(value), when) for step, value, when in held.points[path]] == [
            (step, bits(value), when) for step, value, when in zip(STEPS, VALUES, MILLISECONDS, strict=True)
        ]
    assert [(step, value) for step, value, _ in held.points["m/numbered"]] == [(0, 7.0), (1, 8.0), (2, 9.0)]
    assert held.texts["m/texts"] == TEXTS
    assert held.tags == logged.TAGS
    assert {path: held.files[path] for path in FILES} == {path: {"": data} for path, data in FILES.items()}
    assert held.files["f/set"] == MEMBERS
    (listing,) = held.files["a/tracked"].values()
    check_artifact(listing)
    pictures = [colour(data) for _, data in sorted(held.files["i/images"].items())]
    assert pictures == [COLOURS[name] for _, name in sorted(logged.PICTURES.items())]
    for kind in (held.params, held.points, held.texts, held.files):
        assert not kind.keys() & REFUSED

"""Real engine. The S3 test is a real client against an emulator (moto)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from neptune_assets.errors import LakeError, SettingsError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings, StorageSettings, SummarySettings
from neptune_assets.summary.database import LAKE_VIEWS, open_database, write_database, write_table
from neptune_assets.summary.tables import TABLES, summarize
from neptune_assets_tests.support import lake_factory as make

SETTINGS = SummarySettings(memory_mb=128)
ROWS = [
    *make.params({"lr": 0.5, "sys/name": "n"}),
    *make.metric("loss", [1.0, 0.25]),
    *make.texts("log", ["a", "b", "c"]),
    *make.histograms("h", [([0.0, 1.0], [5.0])]),
]


def summarized(lake: Lake, *project_ids: str) -> Lake:
    filesystem = None if lake.storage.local else lake.storage.filesystem
    for project_id in project_ids or lake.projects():
        with summarize(lake.project(project_id), SETTINGS, lake.settings) as summary:
            for name, reader in summary.tables():
                write_table(reader, lake.layout.summary(name, project_id), filesystem)
    return lake


def ask(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute(sql).fetchall()


def test_an_empty_lake_has_typed_views(tmp_path: Path) -> None:
    empty = write_database(LakeSettings(root=str(tmp_path / "empty")), SETTINGS)
    full = write_database(summarized(make.make_lake(tmp_path / "full", {"ws/p": {"r": ROWS}})).settings, SETTINGS)
    types = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    assert ask(empty, types) == ask(full, types)
    assert {name for name, _, _ in ask(empty, types)} == set(TABLES) | set(LAKE_VIEWS)
    for view in [*TABLES, *LAKE_VIEWS]:
        assert ask(empty, f"SELECT * FROM {view}") == []


@pytest.mark.parametrize("name", ["it's", "[x] *", "ü 漢", 'a"b', "k=v", "#1;--"])
def test_the_lake_may_lie_in_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    other = summarized(make.make_lake(tmp_path / "x", {"ws/other": {"r": ROWS}}))
    lake = summarized(make.make_lake(tmp_path / name, {"ws/p": {"r": ROWS}}))
    path = write_database(lake.settings, SETTINGS)
    assert ask(path, "SELECT project_id, run_id, value FROM points ORDER BY step") == [
        ("ws/p", "r", 1.0),
        ("ws/p", "r", 0.25),
    ]
    assert ask(path, "SELECT value FROM strings ORDER BY step") == [("a",), ("b",), ("c",)]
    assert ask(path, 'SELECT type, edges, "values" FROM histograms') == [("COUNTING", [0.0, 1.0], [5.0])]
    assert ask(path, "SELECT count(*) FROM raw") == [(8,)]
    assert ask(path, "SELECT project_id FROM projects") == [("ws/p",)]
    assert ask(path, "SELECT last_value FROM metrics") == [(0.25,)]
    assert ask(write_database(other.settings, SETTINGS), "SELECT project_id FROM projects") == [("ws/other",)]


def test_every_view_and_column_is_described(tmp_path: Path) -> None:
    path = write_database(LakeSettings(root=str(tmp_path)), SETTINGS)
    assert ask(path, "SELECT view_name FROM duckdb_views() WHERE NOT internal AND comment IS NULL") == []
    described = ask(path, "SELECT comment FROM duckdb_columns() WHERE table_name = 'metrics' ORDER BY column_index")
    assert described == [(column.description,) for column in TABLES["metrics"].columns]


def test_what_is_materialized_later_shows_up_without_a_build(tmp_path: Path) -> None:
    lake = summarized(make.make_lake(tmp_path, {"ws/a": {"r": ROWS}}))
    path = write_database(lake.settings, SETTINGS)
    summarized(make.make_lake(tmp_path, {"ws/a": {"r": ROWS}, "ws/b": {"r": ROWS, "s": ROWS}}))
    assert ask(path, "SELECT project_id, runs FROM projects ORDER BY 1") == [("ws/a", 1), ("ws/b", 2)]
    assert ask(path, "SELECT project_id, count(*) FROM points GROUP BY 1 ORDER BY 1") == [("ws/a", 2), ("ws/b", 4)]


def test_parts_being_written_are_not_seen(tmp_path: Path) -> None:
    lake = summarized(make.make_lake(tmp_path, {"ws/p": {"r": ROWS}}))
    (part,) = (Path(name) for name in lake.project("ws/p").parts()["r"])
    staged = part.parent / ".staging" / "g" / part.name
    staged.parent.mkdir(parents=True)
    staged.write_bytes(part.read_bytes())
    part.with_name(part.name + ".tmp").write_bytes(b"half")
    assert ask(write_database(lake.settings, SETTINGS), "SELECT count(*) FROM raw") == [(8,)]


def test_duckdb_from_1_0_on_opens_the_file(tmp_path: Path) -> None:
    # What old versions make of it is in test_other_readers.py; they go by this number of the header.
    path = write_database(summarized(make.make_lake(tmp_path, {"ws/p": {"r": ROWS}})).settings, SETTINGS)
    assert int.from_bytes(path.read_bytes()[12:20], "little") == 64


def test_a_lake_that_was_moved_or_copied_is_read_where_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "it's [new]"
    write_database(summarized(make.make_lake(old, {"ws/p": {"r": ROWS}})).settings, SETTINGS)
    shutil.copytree(old, new)
    summarized(make.make_lake(old, {"ws/p": {"r": ROWS, "s": ROWS}}))
    both = "SELECT (SELECT runs FROM projects), (SELECT count(*) FROM points)"
    for place in (new, new / "neptune.duckdb"):
        with open_database(place) as con:
            assert con.execute(both).fetchall() == [(1, 2)], "the copy shows what is in the old place"
    shutil.rmtree(old)
    elsewhere = tmp_path / "elsewhere.duckdb"
    shutil.copy(new / "neptune.duckdb", elsewhere)
    with open_database(elsewhere, new) as con:
        assert con.execute(both).fetchall() == [(1, 2)]
    with pytest.raises(duckdb.IOException, match=str(old)):
        ask(new / "neptune.duckdb", both)
    assert ask(write_database(LakeSettings(root=str(new)), SETTINGS), both) == [(1, 2)]
    with pytest.raises(LakeError, match="no database"):
        open_database(tmp_path)


def test_an_open_reader_is_not_disturbed(tmp_path: Path) -> None:
    lake = summarized(make.make_lake(tmp_path, {"ws/p": {"r": ROWS}}))
    path = write_database(lake.settings, SETTINGS)
    with duckdb.connect(str(path), read_only=True) as con:
        assert write_database(lake.settings, SETTINGS) == path
        assert con.execute("SELECT count(*) FROM points").fetchall() == [(2,)]
    assert [name.name for name in tmp_path.iterdir() if "duckdb" in name.name] == ["neptune.duckdb"]


BUILD = """
import sys
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.database import write_database
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    write_database(LakeSettings(root=sys.argv[1]), SummarySettings())
"""


def test_two_processes_may_build_at_once_while_another_reads(tmp_path: Path) -> None:
    lake = summarized(make.make_lake(tmp_path, {"ws/p": {"r": ROWS}}))
    path = write_database(lake.settings, SETTINGS)
    builders = [
        subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"ready\n"
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write(b"go\n")
        builder.stdin.flush()
    reads = 0
    while any(builder.poll() is None for builder in builders):
        assert ask(path, "SELECT count(*) FROM metrics") == [(1,)]
        reads += 1
    assert [builder.communicate() and builder.returncode for builder in builders] == [0, 0]
    assert reads > 1
    assert [name.name for name in tmp_path.iterdir() if "duckdb" in name.name] == ["neptune.duckdb"]


def test_a_killed_build_leaves_the_old_database_and_the_next_cleans_up(tmp_path: Path) -> None:
    lake = summarized(make.make_lake(tmp_path, {"ws/p": {"r": ROWS}}))
    path = write_database(lake.settings, SETTINGS)
    before = path.read_bytes()
    code = (
        "import sys, time\nfrom neptune_assets.summary import database\n"
        "original = database._create_view\n"
        "def slow(*args):\n    original(*args); print('building', flush=True); time.sleep(60)\n"
        "database._create_view = slow\n"
        "from neptune_assets.settings import LakeSettings, SummarySettings\n"
        "database.write_database(LakeSettings(root=sys.argv[1]), SummarySettings())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    assert len([name for name in tmp_path.iterdir() if "duckdb" in name.name]) > 1
    started = time.monotonic()
    write_database(lake.settings, SETTINGS)
    assert time.monotonic() - started < 30
    assert [name.name for name in tmp_path.iterdir() if "duckdb" in name.name] == ["neptune.duckdb"]
    assert ask(path, "SELECT count(*) FROM points") == [(2,)]


@pytest.mark.parametrize("name", ["what?", "back\\slash"])
def test_a_path_that_duckdb_cannot_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="DuckDB"):
        write_database(LakeSettings(root=str(tmp_path / name)), SETTINGS)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[LakeSettings]:
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="lake")
    yield LakeSettings(root="s3://lake/it's [x]", storage=StorageSettings(options={"endpoint_url": endpoint}))
    server.stop()


def test_a_lake_on_s3(bucket: LakeSettings, tmp_path: Path) -> None:
    lake = make.make_lake(bucket.root, {"ws/p": {"r": [*ROWS, make.file("f", b"abc", "f.txt")]}}, settings=bucket)
    summarized(lake)
    with pytest.raises(SettingsError, match="not a local directory"):
        write_database(bucket, SETTINGS)
    path = write_database(bucket, SummarySettings(database=str(tmp_path / "db" / "neptune.duckdb")))
    assert path == tmp_path / "db" / "neptune.duckdb"
    with duckdb.connect(str(path), read_only=True) as con:
        # Whoever opens it brings access to the store: DuckDB's httpfs, or, as here, fsspec.
        con.register_filesystem(lake.storage.filesystem)
        assert con.execute("SELECT value FROM points ORDER BY step").fetchall() == [(1.0,), (0.25,)]
        assert con.execute("SELECT runs, points FROM projects").fetchall() == [(1, 2)]
        ((location,),) = con.execute("SELECT location FROM files").fetchall()
    assert location.startswith("s3://lake/it's [x]/files/")
    assert lake.storage.filesystem.cat_file(location) == b"abc"

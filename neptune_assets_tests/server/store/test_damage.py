"""Damage of a store: whatever changes in its bytes, nothing that was changed is read as good."""

from __future__ import annotations

import gc
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.server.neptune2.filesets import Member, put_members, update_value
from neptune_assets.server.store.database import DATABASE
from neptune_assets.server.store.projects import Store
from neptune_assets.server.store.runs import put_artifact, to_json
from neptune_assets.settings import Filters
from neptune_assets.sources.protocol import RunEnd
from neptune_assets.sources.server.settings import ServerSource
from neptune_assets.sources.server.source import Server
from neptune_assets_tests.server.reading.store_logging import log
from neptune_assets_tests.support.ingest import Ingest, points
from neptune_assets_tests.support.neptune2 import Http
from neptune_assets_tests.support.server import server_in_thread

PROJECT = "team/vision"
ADDED = {
    "project": ("runs", "checksum"),
    "runs": ("attributes", "checksum"),
    "attributes": ("points", "checksum"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damage") / "store"
    store = Store(root)
    project = store.project(PROJECT, create=True)
    for number in range(6):
        with project.write() as writing:
            incoming = project.objects.receive()
            incoming.write(f"file {number}".encode() * 99)
            kept = incoming.keep()
            writing.put_file(f"key/{number}", kept.sha256, kept.size, "text/plain")
        run = f"run {number}"
        log(
            project,
            run,
            values={"lr": number + 0.5, "n": number, "text": f"text {number}" * 9, "ok": True, "sys/tags": ["a", "b"],
                    "file": {"path": f"key/{number}", "size": 594, "mime_type": "text/plain"}},
            floats={f"m/{series}": {step: step * 0.1 + series for step in range(400)} for series in range(3)},
            strings={"log": {step: f"line {step} of {run}" for step in range(60)}},
            histograms={"bins": {n: {"type": "COUNTING", "edges": [0, 1, 2], "values": [n, 1]} for n in range(9)}},
            files={"pictures": {0: {"path": f"key/{number}", "size": 594, "mime_type": "text/plain"}}},
        )  # fmt: skip
        with project.write() as writing:
            found = writing.run(run)
            assert found is not None
            operations = writing.operations(found)
            attribute = operations.attribute("set", AttributeType.FILE_SET)
            assert attribute is not None
            put_members(
                writing.connection, attribute.id, [Member(f"a/{n}", kept.sha256, kept.size, 0) for n in range(4)]
            )
            update_value(operations, "set", writing.connection, attribute.id)
            tracked = [{"filePath": "p", "fileHash": "h", "type": "local"}]
            put_artifact(writing.connection, f"{number:064d}", 5, tracked)
            operations.assign("artifact", AttributeType.ARTIFACT, to_json({"hash": f"{number:064d}"}))
    store.close()
    return root


def read(root: Path) -> tuple[dict[str, Any], list[str]]:
    """All that the source reads of a store by run, and everything that it says is wrong."""
    source = Server(ServerSource(store=str(root)), Filters())
    wrong = [issue.message for issue in source.problems()]
    found: dict[str, Any] = {}
    for project in source.projects():
        runs = source.runs(project)
        wrong += [issue.message for issue in source.problems(project)]
        for run in runs:
            rows: list[Any] = []
            for item in source.read(project, [run.run_id]):
                if isinstance(item, RunEnd):
                    wrong += [issue.message for issue in item.errors]
                    continue
                rows += item.batch.to_pylist()
            for row in list(rows):
                if row["file_value"] is None:
                    continue
                reference = row["file_value"]["path"]
                try:
                    for file in source.files(project, run.run_id, reference, Scope.RUNS):
                        with file.open() as stream:
                            rows.append((file.relative_path, stream.read()))
                except NeptuneAssetsError as error:
                    wrong.append(str(error))
            found[f"{project} {run.run_id}"] = (
                repr(rows),
                run.fingerprint.partition(":")[0],
                run.trashed,
                run.archived,
            )
    return found, wrong


def damage(data: bytearray, choice: random.Random) -> str:
    """Change some bytes in one way."""
    place = choice.randrange(len(data))
    kind = choice.choice(["bit"] * 6 + ["run", "zeros", "cut", "swap"] if len(data) > 8192 else ["bit", "run", "cut"])
    if kind == "bit":
        data[place] ^= 1 << choice.randrange(8)
    elif kind == "run":
        data[place : place + 16] = choice.randbytes(len(data[place : place + 16]))
    elif kind == "zeros":
        start = place // 4096 * 4096
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    elif kind == "cut":
        del data[place:]
    else:
        one, other = (choice.randrange(len(data) // 4096) * 4096 for _ in range(2))
        data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]
    return f"{kind} at {place}"


def accepted(root: Path, tmp_path: Path, seed: int, times: int) -> list[str]:
    """Damage the database and the objects again and again; return what was read as good though it is other."""
    whole, wrong = read(root)
    assert len(whole) == 6
    assert wrong == []
    copy = tmp_path / "store"
    shutil.copytree(root, copy)
    paths = [*copy.glob(f"projects/*/{DATABASE}")] * 19 + [next(copy.glob("projects/*/objects/*/*"))]
    choice, found = random.Random(seed), []
    noticed = 0
    for _ in range(times):
        path = choice.choice(paths)
        good = path.read_bytes()
        data = bytearray(good)
        what = damage(data, choice)
        path.write_bytes(data)
        try:
            now, told = read(copy)
        except (NeptuneAssetsError, sqlite3.DatabaseError):
            now, told = {}, ["the project cannot be read"]
        if now != whole and not told:
            found.append(f"{what} of {path.name}: {[run for run in whole if now.get(run) != whole[run]]}")
        noticed += bool(told)
        path.write_bytes(good)
        for left in (*copy.glob("projects/*/*-wal"), *copy.glob("projects/*/*-shm")):
            left.unlink()
    gc.collect()
    assert noticed > times // 4
    return found


def test_what_was_damaged_is_never_read_as_good(root: Path, tmp_path: Path) -> None:
    assert accepted(root, tmp_path, 1, 60) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 7))
def test_what_was_damaged_is_never_read_as_good_however_often(root: Path, tmp_path: Path, seed: int) -> None:
    assert accepted(root, tmp_path, seed, 500) == []


def test_rows_that_vanished_are_missed(root: Path, tmp_path: Path) -> None:
    for statement, named in {
        "DELETE FROM points WHERE step = 5000000": "points in the store instead of",
        "DELETE FROM objects WHERE step = 5000000": "points in the store instead of",
        "DELETE FROM attributes WHERE path = 'lr'": "attributes in the store instead of",
        "DELETE FROM file_set_files WHERE path = 'a/1'": "is damaged",
        "DELETE FROM runs WHERE id = 3": "runs of team/vision instead of",
        "UPDATE runs SET run_id = 'other' WHERE id = 1": "is damaged",
        "UPDATE project SET uuid = 'other'": "is damaged",
        "UPDATE files SET sha256 = (SELECT max(sha256) FROM files)": "is damaged",
    }.items():
        copy = tmp_path / "store"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy)
        (path,) = copy.glob(f"projects/*/{DATABASE}")
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()
        assert any(named in message for message in read(copy)[1]), statement


def downgrade(root: Path) -> None:
    """Make a store what version 1 wrote."""
    (path,) = root.glob(f"projects/*/{DATABASE}")
    with sqlite3.connect(path) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for column in ADDED.get(table, ("checksum",) if "checksum" in columns else ()):
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("UPDATE project SET format = 1")
    connection.close()


def test_a_store_of_the_first_version_is_read_and_brought_up_to_date(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(root, copy)
    downgrade(copy)
    whole = read(root)
    assert read(copy) == whole, "as it is"
    with server_in_thread(copy) as served, served.client() as http:
        Ingest(http).create("new")
        Ingest(http).update("new", points(1, {"m": 1.0}))
    now, wrong = read(copy)
    assert wrong == []
    assert {run: rows for run, rows in now.items() if run in whole[0]} == whole[0]
    (path,) = copy.glob(f"projects/*/{DATABASE}")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE attributes SET value = 7 WHERE path = 'n'")
    connection.close()
    assert len(read(copy)[1]) == 6


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> Path:
    """A store in which one point, one value, one object and one run are damaged."""
    copy = tmp_path / "store"
    shutil.copytree(root, copy)
    (path,) = copy.glob(f"projects/*/{DATABASE}")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE points SET bits = bits + 1"
            " WHERE step = 7000000 AND attribute IN (SELECT min(attribute) FROM points)"
        )
        connection.execute("UPDATE attributes SET value = 'other' WHERE path = 'text' AND run = 2")
        connection.execute("UPDATE runs SET archived = 1 WHERE id = 3")
    connection.close()
    (content,) = (path for path in copy.glob("projects/*/objects/*/*") if b"file 4" in path.read_bytes())
    content.write_bytes(content.read_bytes().replace(b"file 4", b"file 5"))
    return copy


def test_the_server_answers_with_no_damaged_value(damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server_in_thread(damaged) as served, served.client() as client:
        http = Http(client)
        rows = http.table()
        assert len(rows) == 5
        assert [row["text"]["value"][:6] for row in rows if "text" in row] == ["text 5", "text 4", "text 3", "text 0"]
        ids = {row["sys/custom_run_id"]["value"]: f"{PROJECT}/{row['sys/id']['value']}" for row in rows}
        answers = {}
        for run, identifier in ids.items():
            asked = {"experimentId": identifier, "attribute": "m/0", "limit": 1000, "offset": 0}
            answers[run] = http.raw("getFloatSeriesValues", **asked)
        assert {run for run, answer in answers.items() if answer.status_code != 200} == {"run 0"}
        assert answers["run 0"].status_code == 422
        files = {run: http.raw("downloadAttribute", experimentId=found, attribute="file") for run, found in ids.items()}
        assert {run for run, answer in files.items() if answer.status_code != 200} == {"run 4"}
        assert isinstance(files["run 4"], httpx.Response)
        assert "damaged" in files["run 4"].text
        # Sent again it is whole again.
        assert (
            http.status("fileAtomUpload", b"file 4" * 99, experimentIdentifier=ids["run 4"], attribute="f", ext="")
            == 200
        )
        assert http.raw("downloadAttribute", experimentId=ids["run 4"], attribute="file").content == b"file 4" * 99
    assert "run 2" in caplog.text
    assert "'text'" in caplog.text


def test_one_project_that_cannot_be_read_does_not_stop_the_others(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(root, copy)
    (path,) = copy.glob(f"projects/*/{DATABASE}")
    path.write_bytes(b"")
    with server_in_thread(copy) as served, served.client() as http:
        assert [Ingest(http, "team/other").create("r")] == [{"OK": 1}]
        answer = http.post("/api/backend/v1/projects", json={"organizationId": "team", "name": "vision"})
        assert answer.status_code >= 400
    found, wrong = read(copy)
    assert [run for run in found if run.startswith("team/other")] == ["team/other r"]
    assert len(wrong) == 2
    assert path.read_bytes() == b"", "nobody makes it anew"

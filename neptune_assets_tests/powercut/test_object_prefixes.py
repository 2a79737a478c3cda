"""Object stores: what every prefix of a writer's requests leaves, and what one does that is carried out too late.

Requests are those of real clients to a real server, taken by a proxy between them. What is left is opened by the
reader, by the views of ``neptune.duckdb``, and as raw objects.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import duckdb
import pytest

from neptune_assets.errors import LakeBusyError
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.database import open_database, write_database
from neptune_assets_tests.support.bucket_lake import Bucket, digests, noise, records, rows, version_of
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy
from neptune_assets_tests.support.lake_factory import make_source, metric
from neptune_assets_tests.support.s3 import s3_server

P: Final = "ws/proj"
LEASE: Final = float(os.environ.get("LEASE", "5"))
"""Seconds; on a machine that is busy with other things ``LEASE=20`` keeps writers from losing theirs."""
LINES: Final = {1: {"a": 40, "b": 10, "kept": 3}, 2: {"a": 10, "b": 40, "kept": 3, "new": 5}}
"""Lines of text of each run by version: a shrinks from several parts to fewer, b grows, ``kept`` never changes."""
SMALL: Final = 2
SMALL_PARTS: Final = WriteLimits(row_group_rows=10, part_bytes=3 << 10)
"""Parts roll over after kilobytes, so that runs have several."""
Request = tuple[str, str, Mapping[str, str], bytes]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_KEY", "testing")
    monkeypatch.setenv("LAKE_SECRET", "testing")


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and files are uploaded in several requests each, as real ones from 100 MB on."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *_, **__: 1_000)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 100)


def write(settings: LakeSettings, version: int, lease: float = 600.0) -> None:
    runs = {name: rows(1 if name == "kept" else version, count) for name, count in LINES[version].items()}
    # Runs of few rows without files are sorted, built and committed together.
    runs |= {f"small{number}": metric("m", [float(version)] * 5) for number in range(SMALL)}
    LakeWriter(settings, make_source({P: runs}), lease_seconds=lease, limits=SMALL_PARTS).write_project(P)


def take_over(settings: LakeSettings, version: int) -> None:
    """Write after the lease of somebody else expired; again if a busy machine lets this one expire too."""
    for _ in range(5):
        try:
            write(settings, version, LEASE)
        except LakeBusyError as error:
            busy = error
        else:
            return
    raise busy


def is_change(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bool:
    """True for requests that change the store; renewals of the lease, which come at any moment, are left out."""
    renewal = "/lease-" in path and method == "PUT" and "If-None-Match" not in headers and b"released" not in body
    return method not in {"GET", "HEAD"} and not renewal


def expected(version: int) -> dict[str, int]:
    return {name: 1 if name == "kept" else version for name in (*LINES[version], *(f"small{n}" for n in range(SMALL)))}


def raw_versions(objects: dict[str, bytes]) -> dict[str, int]:
    return {run_id: version_of(objects, record) for run_id, record in records(objects).items()}


def read_versions(settings: LakeSettings) -> dict[str, int]:
    """Return what the reader finds of each run, after it compared all parts and files with what was recorded."""
    lake = Lake(settings)
    if not lake.projects():
        return {}
    found = {}
    for run in lake.project(P).runs():
        for item in run.record.files:
            assert run.file_damage(item) is None
        values = {value for batch in run.batches(columns=["float_value"]) for value in batch["float_value"].to_pylist()}
        (version,) = values - {None}
        found[run.run_id] = int(version)
    return found


def lay_out(objects: dict[str, bytes], root: Path) -> Path:
    for key, content in objects.items():
        place = root / key.removeprefix("lake/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


def shown_versions(objects: dict[str, bytes], database: Path, root: Path) -> dict[str, int]:
    """Return what the views show of a copy of the bucket: each run whole, in one version, and once."""
    with open_database(database, lay_out(objects, root)) as con:
        try:
            found = con.execute(
                "SELECT run_id, list(float_value) FILTER (attribute_type = 'float_series'), "
                "list(string_value) FILTER (attribute_type = 'string_series') FROM raw GROUP BY run_id"
            ).fetchall()
        except duckdb.IOException as error:
            assert "No files found" in str(error)  # noqa: PT017 - no part has its final name yet
            return {}
    shutil.rmtree(root)
    versions = {}
    for run_id, points, strings in found:
        assert len(points) == 5, f"{run_id} is shown with {len(points)} points instead of 5"
        (version,) = set(points)
        if run_id in LINES[2]:
            lines = noise(int(version), LINES[2 if version == 2 else 1][run_id])
            assert sorted(strings) == sorted(lines), f"{run_id} is mixed or doubled"
        versions[run_id] = int(version)
    return versions


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database over some lake; its views are asked about copies of buckets."""
    root = tmp_path_factory.mktemp("database")
    settings = LakeSettings(root=str(root))
    LakeWriter(settings, make_source({P: {"a": rows(1, 1)}})).write_project(P)
    return write_database(settings, SummarySettings())


@dataclass
class Recording:
    """What a bucket held, the requests by which a writer changed it, and what each run was before and is after."""

    before: dict[str, bytes]
    requests: list[Request]
    bucket: str
    old: dict[str, int]
    new: dict[str, int]
    version: int
    after: dict[str, bytes]


class Lab:
    """The server, buckets in it, and recordings of writers at work."""

    def __init__(self, endpoint: str, database: Path, scratch: Path) -> None:
        self.endpoint = endpoint
        self.database = database
        self._numbers = itertools.count()
        self._scratch = scratch

    def bucket(self, objects: dict[str, bytes] | None = None) -> Bucket:
        bucket = Bucket(self.endpoint, f"prefix-{next(self._numbers)}")
        bucket.put(objects or {})
        return bucket

    def shown(self, objects: dict[str, bytes]) -> dict[str, int]:
        return shown_versions(objects, self.database, self._scratch / f"{next(self._numbers)}")

    def written(self, version: int) -> dict[str, bytes]:
        bucket = self.bucket()
        write(bucket.settings(self.endpoint), version)
        return bucket.objects()

    def record(
        self, before: dict[str, bytes], version: int, by: Callable[[LakeSettings, int], None] = write
    ) -> Recording:
        bucket = self.bucket(before)
        old = read_versions(bucket.settings(self.endpoint))
        with FaultyProxy(self.endpoint).running() as proxy:
            by(bucket.settings(proxy.url), version)
        requests = [request for request in proxy.seen.requests if is_change(*request)]
        return Recording(before, requests, bucket.name, old, expected(version), version, bucket.objects())

    def states(self, recording: Recording) -> Iterator[tuple[Request, Bucket]]:
        """Carry the recorded requests out once more, and give the bucket after each."""
        bucket = self.bucket(recording.before)
        uploads: dict[str, str] = {}
        for request in recording.requests:
            self._send(request, recording.bucket, bucket.name, uploads)
            yield request, bucket

    def _send(self, request: Request, old: str, new: str, uploads: dict[str, str]) -> None:
        method, path, headers, body = request
        path = path.replace(f"/{old}", f"/{new}", 1)
        if found := re.search(r"uploadId=([^&]+)", path):
            path = path.replace(found[1], uploads.setdefault(found[1], uploads.get("", "")))
        headers = {name: re.sub(rf"^/?{old}/", f"{new}/", value) for name, value in headers.items() if name != "Host"}
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        # The probe for conditional writes is refused.
        assert response.status < 300 or (response.status == 412 and "/lease-" in path), (request[:2], data)
        if begun := re.search(rb"<UploadId>([^<]+)<", data):
            uploads[""] = begun[1].decode()

    def check(self, recording: Recording, bucket: Bucket) -> None:
        """Demand of each run that it is the old or the new one, for every way to read."""
        objects = bucket.objects()
        found = read_versions(bucket.settings(self.endpoint))
        assert raw_versions(objects) == found
        for versions in (found, self.shown(objects)):
            assert recording.old.keys() <= versions.keys() <= recording.new.keys()
            for run_id, version in versions.items():
                assert version in {recording.old.get(run_id), recording.new[run_id]}, run_id

    def converge(self, recording: Recording, objects: dict[str, bytes], *, killed: bool) -> None:
        """Materialize on top of a state and demand the wanted end. The writer was killed, or failed and said so."""
        bucket = self.bucket({key: left(key, content, killed=killed) for key, content in objects.items()})
        (take_over if killed else write)(bucket.settings(self.endpoint), recording.version)
        self.demand(bucket, recording.new)
        assert digests(bucket.objects()) == digests(recording.after)

    def demand(self, bucket: Bucket, wanted: dict[str, int], late_files: Collection[str] = ()) -> None:
        """Demand that a bucket holds these versions of runs and nothing else but ``late_files``."""
        objects = bucket.objects()
        found = read_versions(bucket.settings(self.endpoint))
        assert raw_versions(objects) == found == wanted
        assert self.shown(objects) == wanted
        named = records(objects).values()
        parts = [part["name"] for record in named for part in record["parts"]]
        assert sorted(key.rsplit("/", 1)[-1] for key in objects if "_part_" in key) == sorted(parts)
        files = [item["path"] for record in named for item in record.get("files", ())]
        stored = [key.split("/", 3)[3] for key in objects if "/files/" in key]
        assert sorted(path for path in stored if path not in late_files) == sorted(files)
        assert not [key for key in objects if "/.staging/" in key]


def left(key: str, content: bytes, *, killed: bool) -> bytes:
    """Return what a writer leaves: a lease that it gives back, or one that is short, for nobody to wait for minutes."""
    if "/lease-" not in key:
        return content
    return json.dumps(json.loads(content) | ({"seconds": LEASE} if killed else {"released": True})).encode()


@pytest.fixture(scope="module")
def lab(endpoint: str, database: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(endpoint, database, tmp_path_factory.mktemp("copies"))


@cache
def first_write(lab: Lab) -> Recording:
    """Two commits, made into one checkpoint at the end."""
    recording = lab.record({}, 1)
    assert any(b'"kind":"checkpoint"' in body for _, _, _, body in recording.requests)
    return recording


@cache
def replace_of_runs(lab: Lab) -> Recording:
    """Several runs in one commit, of one part and of several, with files."""
    recording = lab.record(lab.written(1), 2)
    assert {len(records(objects)["a"]["parts"]) > 1 for objects in (recording.before, recording.after)} == {True, False}
    return recording


def uploads_in_pieces(lab: Lab) -> Recording:
    recording = lab.record(replace_of_runs(lab).before, 2)
    assert sum(method == "POST" and "uploadId=" in path for method, path, _, _ in recording.requests) > 5
    return recording


def recovery(lab: Lab) -> Recording:
    """What was killed amid its promotion is finished by the next writer."""
    replaced = replace_of_runs(lab)
    deltas = [number for number, (_, path, _, _) in enumerate(replaced.requests) if path.endswith(".jsonl")]
    state = next(itertools.islice(lab.states(replaced), deltas[0] + 5, None))[1]
    killed = {key: left(key, content, killed=True) for key, content in state.objects().items()}
    recording = lab.record(killed, 2, take_over)
    return replace(recording, old=expected(1) | {"new": 2})


SCENARIOS: Final[dict[str, Callable[[Lab], Recording]]] = {
    "first write of a project": first_write,
    "replace of runs in one commit": replace_of_runs,
    "recovery after a killed writer": recovery,
}


def replay(lab: Lab, name: str, *, every: int, converge_every: int) -> tuple[int, int]:
    return replay_of(lab, SCENARIOS[name](lab), every=every, converge_every=converge_every)


def replay_of(lab: Lab, recording: Recording, *, every: int, converge_every: int) -> tuple[int, int]:
    """Open the states after every ``every``-th request, and do the work on top of some; return how many of each."""
    opened, work = 0, []
    with ThreadPoolExecutor(4) as pool:
        for number, (request, bucket) in enumerate(lab.states(recording)):
            if number % every:
                continue
            try:
                lab.check(recording, bucket)
            except Exception as error:
                raise AssertionError(f"after {number + 1} requests, the last {request[:2]}") from error
            opened += 1
            if opened % converge_every == 0:
                objects = bucket.objects()
                # Who was killed leaves a lease that is waited for, on every second state.
                killed = opened // converge_every % 2 == 0
                work.append(pool.submit(lab.converge, recording, objects, killed=killed))
        for future in work:
            future.result()
    return opened, len(work)


def test_a_prefix_of_requests_leaves_the_old_or_the_new(lab: Lab) -> None:
    opened, finished = replay(lab, "replace of runs in one commit", every=7, converge_every=4)
    assert opened >= 7
    assert finished >= 1


def told_counts(counts: dict[str, tuple[int, int]]) -> str:
    return "".join(
        f"\n{opened:5,} states of: {name}; on {tops:,} a writer went on" for name, (opened, tops) in counts.items()
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_prefix_of_requests_leaves_the_old_or_the_new(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {name: replay(lab, name, every=1, converge_every=1) for name in SCENARIOS}
    with capsys.disabled():
        print(told_counts(counts), end="")
    assert sum(opened for opened, _ in counts.values()) > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("pieces")
def test_every_prefix_of_uploads_in_pieces_leaves_the_old_or_the_new(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "uploads of several requests each"
    counts = {name: replay_of(lab, uploads_in_pieces(lab), every=1, converge_every=3)}
    with capsys.disabled():
        print(told_counts(counts), end="")


class Holding(FaultyProxy):
    """A proxy that holds back the ``at``-th change and all that comes after it, until :attr:`gate` is set.

    With ``begun`` a copy has read its source by then, and writes what it read when it goes on.
    """

    def __init__(self, upstream: str, bucket: Bucket, at: int, *, begun: bool) -> None:
        super().__init__(upstream)
        self.gate, self.met = threading.Event(), threading.Event()
        self.held = ""
        self._bucket, self._at, self._begun = bucket, at, begun
        self._changes = 0

    def fault(self, path: str, body: bytes = b"", method: str = "") -> Fault | None:
        with self.lock:
            headers = next(seen[2] for seen in reversed(self.seen.requests) if seen[:2] == (method, path))
            self._changes += is_change(method, path, headers, body)
            if self._changes < self._at:
                return None
            first, self.held = not self.met.is_set(), self.held or f"{method} {path}"
        copied = headers.get("x-amz-copy-source") if first and self._begun else None
        content = None if copied is None else self._bucket.objects()[copied.lstrip("/").split("/", 1)[1]]
        self.met.set()
        assert self.gate.wait(120)
        if content is None:
            return None
        self._bucket.put({path.split("/", 2)[2]: content})
        return Fault(path, status=200, body=b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")


def deliver_late(lab: Lab, before: dict[str, bytes], at: int, taker: int, *, begun: bool) -> str | None:
    """Hold back a change of a writer of version 2 until another took over and finished.

    None if the writer ended before: there is no such change, or it lost its lease to a busy machine.
    """
    bucket = lab.bucket(before)
    settings = bucket.settings(lab.endpoint)
    proxy = Holding(lab.endpoint, bucket, at, begun=begun)
    ended: list[BaseException | None] = []

    def lose() -> None:
        try:
            write(bucket.settings(proxy.url), 2, LEASE)
            ended.append(None)
        except Exception as error:  # noqa: BLE001 - looked at below
            ended.append(error)
        proxy.met.set()

    with proxy.running():
        loser = threading.Thread(target=lose)
        loser.start()
        try:
            assert proxy.met.wait(120)
            if ended:
                return None
            take_over(settings, taker)
            finished = read_versions(settings)
        finally:
            proxy.gate.set()
            loser.join(120)
    (error,) = ended
    wanted = expected(taker) | {run_id: version for run_id, version in finished.items() if run_id == "new"}
    assert finished == wanted
    told = f"{proxy.held}, begun {begun}, taken over by a writer of version {taker}"
    assert error is None or isinstance(error, LakeBusyError), f"{told}: {error!r}"
    assert read_versions(settings) == wanted, told
    assert raw_versions(bucket.objects()) == wanted, told
    assert lab.shown(bucket.objects()) == wanted, told
    take_over(settings, taker)
    # A file that comes late stays, unless its run is replaced: nobody looks for it.
    late = proxy.held.partition("/files/")[2].split("/", 1)[-1] if proxy.held.startswith("PUT") else ""
    lab.demand(bucket, wanted, {late})
    return told


def late_requests(
    lab: Lab, recording: Recording, ats: Iterable[int], takers: Sequence[int]
) -> tuple[list[str], list[str]]:
    """Deliver each of these changes late, several at a time; return which were, and what went wrong."""
    told, wrong = [], []

    def one(at: int, taker: int, begun: bool) -> None:
        try:
            for _ in range(5):
                found = deliver_late(lab, recording.before, at, taker, begun=begun)
                if found is not None:
                    told.append(found)
                    break
        except Exception as error:  # noqa: BLE001 - all are told at the end
            wrong.append(f"change {at}, taker {taker}, begun {begun}: {type(error).__name__}: {str(error)[:500]}")

    with ThreadPoolExecutor(4) as pool:
        for at, taker in itertools.product(ats, takers):
            pool.submit(one, at, taker, False)
            if "x-amz-copy-source" in recording.requests[at - 1][2]:
                pool.submit(one, at, taker, True)
    return told, wrong


def first(recording: Recording, method: str, name: str, *, copy: bool = False) -> int:
    """Return the number of the first change by this method to an object outside of staging whose key holds a text."""
    return next(
        number
        for number, (did, path, headers, _) in enumerate(recording.requests, 1)
        if did == method and name in path and "/.staging/" not in path and copy == ("x-amz-copy-source" in headers)
    )


def test_a_late_copy_or_deletion_harms_nothing_of_who_took_over(lab: Lab) -> None:
    recording = replace_of_runs(lab)
    ats = [
        2,  # the probe of conditional writes
        first(recording, "PUT", "_part_", copy=True),
        first(recording, "DELETE", "_part_"),
        first(recording, "DELETE", "/files/"),
    ]
    told, wrong = late_requests(lab, recording, ats, [1])
    assert not wrong, "\n".join(wrong)
    assert len(told) == len(ats) + 1, "the copy is tried in two ways"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("pieces")
def test_no_late_request_of_an_upload_in_pieces_harms_who_took_over(lab: Lab) -> None:
    recording = uploads_in_pieces(lab)
    uploads = [number for number, (_, path, _, _) in enumerate(recording.requests, 1) if "uploadId=" in path]
    told, wrong = late_requests(lab, recording, uploads[::2], [1])
    assert not wrong, "\n".join(wrong)
    assert len(told) == len(uploads[::2])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_request_of_a_writer_that_lost_its_lease_harms_who_took_over(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = replace_of_runs(lab)
    told, wrong = late_requests(lab, recording, range(1, len(recording.requests) + 1), (1, 2))
    with capsys.disabled():
        print(f"\n{len(told):,} requests carried out after another writer had finished", end="")
    assert not wrong, "\n".join(wrong)
    assert len(told) >= len(recording.requests)

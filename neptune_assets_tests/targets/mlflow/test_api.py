"""Real engine: an `mlflow server` behind a proxy of ours that loses answers, drops connections and refuses."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.lake.reader import Lake
from neptune_assets.retries import RetryPolicy
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import LoadReport, load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as Opened
from neptune_assets.targets.mlflow.models import ModelsTarget
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets_tests.conformance.targets import PROJECT, Held, born, ms, param, point, text
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy
from neptune_assets_tests.support.lake_factory import file, make_lake
from neptune_assets_tests.support.mlflow_server import RunningServer, mlflow_server
from neptune_assets_tests.targets.mlflow.server_place import SERVER, ServerPlace, announce

ROWS = born(
    *(point(f"m/{k}", i, i / 7 + k, ms(i)) for k in range(30) for i in range(100)),
    point("odd", 0, float("nan")),
    *(param(f"p/{k}", "int", k) for k in range(120)),
    text("log", 0, "line"),
)

RETRIES = RetryPolicy((0.05, 0.05, 0.1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def proxy(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    server.empty()
    monkeypatch.setenv(SERVER, announce(server))
    with FaultyProxy(server.url).running() as proxy:
        yield proxy


def load(
    root: Path, proxy: FaultyProxy, rows: Any = ROWS, *, retries: RetryPolicy = RETRIES, **options: Any
) -> LoadReport:
    make_lake(root / "lake", {PROJECT: {"R-1": rows}})
    settings = LakeSettings(root=str(root / "lake"))
    target = MlflowSettings(tracking_uri=proxy.url, **options)
    ledger = Ledger(settings, "mlflow", PROJECT)
    project = Lake(settings).project(PROJECT)
    return load_project(project, lambda: Opened(target, settings, retries=retries), ledger, sleep=lambda _: None)


def the_run(root: Path) -> Held:
    """The only run, complete, with exactly the points that were logged, once."""
    place = ServerPlace(root)
    (held,) = place.held(PROJECT)["R-1"]
    assert held.digest
    assert place.query("SELECT count(*) FROM metrics JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active'") == [
        (3_001,)
    ]
    assert [value for _, value, _ in held.points["m/7"]] == [i / 7 + 7 for i in range(100)]
    assert len(held.params) == 121
    return held


@pytest.mark.parametrize(
    "fault",
    [
        Fault("runs/log-batch", status=500, times=2),
        Fault("runs/log-batch", status=502, body=b"<html>Bad Gateway</html>", times=3),
        Fault("runs/log-batch", status=503, after=1),
        Fault("runs/log-batch", status=504, after=2),
        Fault("runs/log-batch", status=429),
        Fault("runs/log-batch", "drop", times=3),
        Fault("runs/log-batch", "lose", times=3),
        Fault("runs/log-batch", "lose", after=4, times=2),
        Fault("runs/create", "lose"),
        Fault("runs/create", "drop"),
        Fault("runs/create", status=503, times=2),
        Fault("runs/update", "lose"),
        Fault("runs/search", status=502),
        Fault("runs/get", "drop"),
        Fault("metrics/get-history", "drop", times=2, after=3),
        Fault("metrics/get-history", status=500, after=5),
    ],
    ids=lambda fault: f"{fault.path}-{fault.kind}-{fault.status}-{fault.after}",
)
def test_what_passes_is_sent_again_and_nothing_doubles(fault: Fault, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults = [fault]
    report = load(tmp_path, proxy)
    assert not report.failed, report.failed
    assert not fault.times, "the fault was never met"
    assert proxy.seen.count("runs/create") <= 3
    the_run(tmp_path)


def test_a_lost_deletion_counts_as_done(proxy: FaultyProxy, tmp_path: Path) -> None:
    assert load(tmp_path, proxy, born(point("m/0", 0, 1.0))).ok
    proxy.faults = [Fault("runs/delete", "lose")]
    report = load(tmp_path, proxy)
    assert not report.failed, report.failed
    assert proxy.seen.count("runs/delete") == 2
    the_run(tmp_path)


def test_a_creation_that_arrives_twice_leaves_one_run(proxy: FaultyProxy, tmp_path: Path) -> None:
    # The first request is carried out, but only after it was looked for and not found.
    proxy.faults = [Fault("runs/create", "late", seconds=0.2)]
    report = load(tmp_path, proxy)
    assert not report.failed, report.failed
    assert ServerPlace(tmp_path).query("SELECT count(*) FROM runs") == [(2,)]
    the_run(tmp_path)


def test_a_request_that_hangs_is_given_up_and_sent_again(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "6")
    proxy.faults = [Fault("runs/log-batch", "hang", seconds=8, after=1)]
    report = load(tmp_path, proxy)
    assert not report.failed, report.failed
    the_run(tmp_path)


@pytest.mark.parametrize(
    "given", ["1", format_datetime(datetime.now(UTC) + timedelta(days=400), usegmt=True)], ids=["seconds", "date"]
)
def test_retry_after_is_kept_to(given: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults = [Fault("runs/create", status=429, headers={"Retry-After": given})]
    before = time.monotonic()
    report = load(tmp_path, proxy, retries=RetryPolicy(RETRIES.pauses, longest_asked=1.0))
    assert not report.failed, report.failed
    assert time.monotonic() - before > 1.0
    the_run(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("runs/log-batch", status=400), "refused .* with status 400: injected"),
        (Fault("runs/log-batch", status=401), "token_env"),
        (Fault("runs/log-batch", status=403), "edit permission"),
        (Fault("runs/log-batch", status=404), "deleted meanwhile"),
        (Fault("runs/log-batch", status=413, body=b"<html>too large</html>"), "client_max_body_size"),
        (Fault("runs/create", status=403), "creating run 'R-1'"),
        (Fault("runs/create", "garble"), "does not respond like an MLflow server"),
    ],
    ids=lambda item: f"{item.path}-{item.status}" if isinstance(item, Fault) else "",
)
def test_what_stays_wrong_fails_at_once_and_says_why(
    fault: Fault, words: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    fault.times = 1_000
    proxy.faults = [fault]
    report = load(tmp_path, proxy)
    assert list(report.failed) == ["R-1"]
    assert not report.transient
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(report.failed["R-1"])
    assert 1_000 - fault.times <= 8, "a refused request was sent again"
    # When the cause is gone, the same load brings everything.
    proxy.faults = []
    assert load(tmp_path, proxy).ok
    the_run(tmp_path)


def test_a_server_that_stays_in_trouble_is_unavailable(proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults = [Fault("runs/log-batch", status=503, times=1_000_000)]
    report = load(tmp_path, proxy)
    assert report.transient
    assert "failed after 4 attempts" in report.failed["R-1"]
    # Each of the four bodies is sent four times at most: the load does not begin anew what the requests gave up.
    assert proxy.seen.count("runs/log-batch") <= 16
    assert "status 503: injected" in report.failed["R-1"]
    proxy.faults = []
    assert load(tmp_path, proxy).ok
    the_run(tmp_path)


def test_connections_are_kept_and_several_requests_are_under_way(proxy: FaultyProxy, tmp_path: Path) -> None:
    rows = born(*(point(f"m/{k}", i, float(i), ms(i)) for k in range(10) for i in range(2_000)))
    report = load(tmp_path, proxy, rows, http_connections=4)
    assert not report.failed, report.failed
    bodies = [body for _, path, _, body in proxy.seen.requests if "log-batch" in path and b'"metrics"' in body]
    assert [body.count(b'"key"') for body in bodies] == [1_000] * 20
    assert 2 <= proxy.seen.at_once <= 4
    # The proxy keeps connections open: many times fewer than requests.
    assert proxy.seen.connections * 3 < len(proxy.seen.requests)


def test_one_connection_is_one_request_at_a_time(proxy: FaultyProxy, tmp_path: Path) -> None:
    assert load(tmp_path, proxy, http_connections=1).ok
    assert proxy.seen.at_once == 1
    the_run(tmp_path)


@pytest.mark.parametrize("kind", ["token", "password", "in the address"])
def test_credentials_are_sent_and_never_shown(
    kind: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_TOKEN", "s3cret-t0ken")
    monkeypatch.setenv("MY_USER", "ann")
    monkeypatch.setenv("MY_PASSWORD", "s3cret-t0ken")
    options: dict[str, str] = {}
    if kind == "token":
        options = {"token_env": "MY_TOKEN"}
    elif kind == "password":
        options = {"username_env": "MY_USER", "password_env": "MY_PASSWORD"}
    else:
        proxy.url = proxy.url.replace("http://", "http://ann:s3cret-t0ken@")
    proxy.faults = [Fault("runs/log-batch", "drop", times=1), Fault("runs/update", status=403)]
    report = load(tmp_path, proxy, **options)
    sent = {headers.get("Authorization") for _, path, headers, _ in proxy.seen.requests if "runs/" in path}
    assert sent == {"Bearer s3cret-t0ken" if kind == "token" else "Basic YW5uOnMzY3JldC10MGtlbg=="}
    assert report.failed
    shown = f"{report}{caplog.text}{[str(record.args) for record in caplog.records]}"
    assert "s3cret-t0ken" not in shown
    assert "s3cret" not in str(ServerPlace(tmp_path).query("SELECT * FROM tags"))


def test_two_targets_in_one_process_each_have_their_own_credentials(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.empty()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-somebody-else")
    monkeypatch.setenv("FIRST_TOKEN", "first-token")
    monkeypatch.setenv("SECOND_USER", "ann")
    monkeypatch.setenv("SECOND_PASSWORD", "second-password")
    before = dict(os.environ)
    rows = [*born(point("m", 0, 1.0)), file("weights", b"w" * 100, "weights.pt")]
    version = [*rows, param("sys/id", "string", "PRO-CLS-1"), param("sys/model_id", "string", "PRO-CLS")]
    with FaultyProxy(server.url).running() as first, FaultyProxy(server.url).running() as second:

        def load_into(name: str, **options: str) -> list[LoadReport]:
            lake = LakeSettings(root=str(tmp_path / name))
            project = f"{PROJECT}-{name}"
            target = MlflowSettings.model_validate(options)
            make_lake(lake.root, {project: {f"R-{n}": rows for n in range(3)}})
            make_lake(lake.root, {project: {"PRO-CLS-1": version}}, scope=Scope.MODEL_VERSIONS)
            reports = []
            for scope, opener in (
                (Scope.RUNS, lambda: Opened(target, lake, retries=RETRIES)),
                (Scope.MODEL_VERSIONS, lambda: ModelsTarget(target, lake, Scope.MODEL_VERSIONS)),
            ):
                ledger = Ledger(lake, f"mlflow_{scope.value}", project)
                reports.append(load_project(Lake(lake).project(project, scope), opener, ledger))
            return reports

        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(load_into, "one", tracking_uri=first.url, token_env="FIRST_TOKEN")
            two = pool.submit(
                load_into, "two", tracking_uri=second.url, username_env="SECOND_USER", password_env="SECOND_PASSWORD"
            )
            reports = [*one.result(), *two.result()]
    assert [report.failed for report in reports] == [{}] * 4
    basic = base64.b64encode(b"ann:second-password").decode()
    for proxy, wanted in ((first, "Bearer first-token"), (second, f"Basic {basic}")):
        sent = {(path.split("?")[0], headers.get("Authorization")) for _, path, headers, _ in proxy.seen.requests}
        asked = {path for path, _ in sent}
        for part in ("experiments/", "runs/", "mlflow-artifacts/artifacts", "registered-models/", "model-versions/"):
            assert any(part in path for path in asked), part
        assert {said for path, said in sent if not path.endswith("/health")} == {wanted}
    assert dict(os.environ) == before


def test_the_variables_of_mlflow_itself_are_honoured(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "from-the-environment")
    assert load(tmp_path, proxy).ok
    sent = {headers.get("Authorization") for _, path, headers, _ in proxy.seen.requests if "runs/" in path}
    assert sent == {"Bearer from-the-environment"}


def test_a_dead_server_is_said_at_once_and_by_class(proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults = [Fault("/health", status=503)]
    with pytest.raises(TargetUnavailableError, match="answers with status 503"):
        load(tmp_path, proxy)
    proxy.faults = [Fault("/health", "drop", times=10)]
    with pytest.raises(TargetError, match="No MLflow server answers"):
        load(tmp_path, proxy)

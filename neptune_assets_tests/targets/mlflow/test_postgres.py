"""Real engine: a PostgreSQL server started by the tests, with MLflow's own schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from neptune_assets.errors import TargetUnavailableError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as Opened
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.report import LoadReport
from neptune_assets_tests.conformance.targets import PROJECT, Place, born, ms, param, point, text
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.targets.mlflow import test_conformance as suite
from neptune_assets_tests.targets.mlflow.postgres_place import PostgresPlace, migrated_server


class TestDirectIntoPostgres(suite._Mlflow):
    place_class = PostgresPlace
    crash_points: ClassVar = suite.TestDirectIntoSqlite.crash_points

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        place = PostgresPlace(tmp_path)
        yield place
        place.drop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[PostgresPlace]:
    place = PostgresPlace(tmp_path)
    yield place
    place.drop()


ROWS = born(
    *(point("a/b", i, i / 3, ms(i)) for i in range(5)),
    point("nan", 0, float("nan"), ms(0)),
    param("lr", "float", 0.1),
    text("t", 0, "x"),
)


def load(place: PostgresPlace, **options: object) -> LoadReport:
    place.options = {**place.options, **options}
    settings = LakeSettings(root=str(place.root / "lake"))
    make_lake(place.root / "lake", {PROJECT: {"R-1": ROWS}})
    return load_project(
        Lake(settings).project(PROJECT), place.open, Ledger(settings, "mlflow", PROJECT), sleep=lambda _: None
    )


def test_mlflow_reads_what_was_written_directly(place: PostgresPlace) -> None:
    from mlflow import MlflowClient

    report = load(place)
    assert report.loaded == ["R-1"]
    client = MlflowClient(tracking_uri=place.options["tracking_uri"])
    experiment = client.get_experiment_by_name(PROJECT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "params.lr = '0.1'")
    assert run.data.metrics["a/b"] == 4 / 3
    assert [item.value for item in client.get_metric_history(run.info.run_id, "a/b")] == [i / 3 for i in range(5)]
    assert place.query("SELECT value, is_nan FROM metrics WHERE key = 'nan'") == [(0.0, True)]
    # The direct way derives the run's id from its project and name.
    assert run.info.run_id == run.data.tags["neptune_assets.key"]


def test_direct_writes_can_be_forbidden(place: PostgresPlace) -> None:
    assert load(place, direct=False).loaded == ["R-1"]
    assert place.query("SELECT count(*) FROM metrics") == [(6,)]
    tag = place.query("SELECT value FROM tags WHERE key = 'neptune_assets.key'")
    assert tag != place.query("SELECT run_uuid FROM runs")


def test_an_untested_schema_is_not_written_directly(place: PostgresPlace) -> None:
    place.arguments = {"tested_revisions": frozenset()}
    assert load(place).loaded == ["R-1"]
    tag = place.query("SELECT value FROM tags WHERE key = 'neptune_assets.key'")
    assert tag != place.query("SELECT run_uuid FROM runs")


def test_an_empty_database_gets_mlflows_tables(tmp_path: Path) -> None:
    server = migrated_server()
    server.create("blank")
    try:
        settings = MlflowSettings(tracking_uri=server.url("blank", "postgresql+psycopg"), artifact_root=str(tmp_path))
        target = Opened(settings, LakeSettings(root=str(tmp_path)))
        target.check()
        target.close()
        with psycopg.connect(server.url("blank")) as connection:
            assert connection.execute("SELECT count(*) FROM alembic_version").fetchall() == [(1,)]
    finally:
        server.drop("blank")


def test_a_database_that_is_gone_is_worth_another_try(place: PostgresPlace) -> None:
    place.options = {**place.options, "tracking_uri": f"{place.options['tracking_uri']}x".replace("?hostx", "?host")}
    target = place.open()
    with pytest.raises(TargetUnavailableError, match="did not answer"):
        target.check()


def test_a_connection_that_breaks_leaves_the_old_run(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    from neptune_assets.targets.mlflow.database import Transaction

    whole = Transaction.texts
    broken: list[int] = []

    def texts(self: Transaction, *arguments: object) -> None:
        if not broken:
            broken.append(1)
            migrated_server().sql(
                "postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{place.name}'"
            )
        whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Transaction, "texts", texts)
    report = load(place)
    assert broken
    assert report.loaded == ["R-1"], report.failed
    assert place.query("SELECT count(*) FROM metrics") == [(6,)]

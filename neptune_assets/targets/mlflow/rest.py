"""Writing a run through MLflow's client, for tracking servers and for databases whose schema was not tested.

Over HTTP there is no transaction. A new MLflow run is filled beside the old one and has no digest until everything is
there; then the old one goes, then the digest is set. Whatever has no digest is partial and is thrown away next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final, TypeVar

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from neptune_assets.targets.mlflow import mapping
from neptune_assets.targets.mlflow.database import HeldRun
from neptune_assets.targets.mlflow.points import Points

METRICS_PER_BATCH: Final = 1000
TEXTS_PER_BATCH: Final = 100
IN_FLIGHT: Final = 4
"""Requests at once; the server's CPU is the limit soon after."""

T = TypeVar("T")


def held(client: MlflowClient, experiments: list[str], project_key: str) -> list[HeldRun]:
    """Return the runs of one project that loads left in MLflow and nobody deleted."""
    condition = f"tags.`{mapping.PROJECT_KEY}` = '{project_key}'"
    found: list[HeldRun] = []
    for first in range(0, len(experiments), 500):
        token: str | None = None
        while True:
            page = client.search_runs(
                experiments[first : first + 500], condition, ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
            )
            found += [held_run(run) for run in page]
            token = page.token
            if not token:
                break
    return found


def held_run(run: Run) -> HeldRun:
    """Return what our tags say of a run."""
    return HeldRun.from_tags(run.info.run_id, run.info.artifact_uri, dict(run.data.tags))


def log_metrics(client: MlflowClient, uuid: str, portions: Iterable[Points]) -> int:
    """Send all points in full batches across metrics, a few batches at once; return their number.

    A batch whose answer was lost is sent again by MLflow's client; the server's database keeps equal points once.
    """
    count = 0
    pending: set[Future[object]] = set()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        try:
            for batch in _batches(portions):
                if len(pending) >= 2 * IN_FLIGHT:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                count += len(batch)
                pending.add(pool.submit(client.log_batch, uuid, metrics=batch))
            for future in pending:
                future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise
    return count


def log_texts(client: MlflowClient, uuid: str, params: dict[str, str], tags: dict[str, str]) -> None:
    """Send params and tags in batches of what a server takes at once."""
    for chunk in _chunks([Param(key, value) for key, value in params.items()], TEXTS_PER_BATCH):
        client.log_batch(uuid, params=chunk)
    for portion in _chunks([RunTag(key, value) for key, value in tags.items()], TEXTS_PER_BATCH):
        client.log_batch(uuid, tags=portion)


def read_points(client: MlflowClient, uuid: str, keys: Iterable[str]) -> Iterator[Points]:
    """Read the metric points of a run, one metric at a time."""
    for key in keys:
        history = client.get_metric_history(uuid, key)
        if history:
            values = np.asarray([item.value for item in history], np.float64)
            is_nan = np.isnan(values)
            yield Points(
                [key],
                np.zeros(len(history), np.intp),
                np.asarray([item.step for item in history], np.int64),
                np.asarray([item.timestamp for item in history], np.int64),
                np.where(is_nan, 0.0, values) + 0.0,
                is_nan,
            )


def delete_run(client: MlflowClient, uuid: str) -> None:
    """Put a run in MLflow's trash; nothing happens if it is not there."""
    try:
        client.delete_run(uuid)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _batches(portions: Iterable[Points]) -> Iterator[list[Metric]]:
    batch: list[Metric] = []
    for points in portions:
        values = np.where(points.is_nan, np.nan, points.values).tolist()
        for code, value, time, step in zip(
            points.codes.tolist(), values, points.times.tolist(), points.steps.tolist(), strict=True
        ):
            batch.append(Metric(points.keys[code], value, time, step))
            if len(batch) == METRICS_PER_BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]

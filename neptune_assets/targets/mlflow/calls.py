"""The calls that loading a run takes, through MLflow's client: for databases whose schema was not tested.

The same methods as :class:`~neptune_assets.targets.mlflow.rest.Rest` has for tracking servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from neptune_assets.targets.mlflow.database import HeldRun
from neptune_assets.targets.mlflow.points import Points

METRICS_PER_BATCH: Final = 1000
TEXTS_PER_BATCH: Final = 100

T = TypeVar("T")


class Calls:
    """Writes and reads runs through MLflow's client, in this process."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def held(self, experiments: list[str], condition: str) -> list[HeldRun]:
        """Return the runs that MLflow holds under a condition and nobody deleted."""
        found: list[HeldRun] = []
        for portion in chunks(experiments, 500):
            token: str | None = None
            while True:
                page = self._client.search_runs(
                    portion, condition, ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
                )
                found += [
                    HeldRun.from_tags(run.info.run_id, run.info.artifact_uri, dict(run.data.tags)) for run in page
                ]
                token = page.token
                if not token:
                    break
        return found

    def create_run(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> tuple[str, str]:
        """Create a run; return its id and where its artifacts go."""
        info = self._client.create_run(experiment_id, start_time=start, tags=dict(tags), run_name=name).info
        return info.run_id, info.artifact_uri

    def ghosts(self, uuid: str) -> list[str]:
        """Return runs that came into being besides ``uuid`` when it was created: none without a wire between."""
        return []

    def log_metrics(self, uuid: str, portions: Iterable[Points]) -> int:
        """Write all points in full batches across metrics; return their number."""
        count = 0
        for batch in _batches(portions):
            self._client.log_batch(uuid, metrics=batch)
            count += len(batch)
        return count

    def log_texts(self, uuid: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write params and tags in batches of what MLflow takes at once."""
        for chunk in chunks([Param(key, value) for key, value in params.items()], TEXTS_PER_BATCH):
            self._client.log_batch(uuid, params=chunk)
        for portion in chunks([RunTag(key, value) for key, value in tags.items()], TEXTS_PER_BATCH):
            self._client.log_batch(uuid, tags=portion)

    def finish(self, uuid: str, status: str, end: int) -> None:
        """Set status and end time."""
        self._client.set_terminated(uuid, status, end)

    def delete_run(self, uuid: str) -> None:
        """Put a run in MLflow's trash; nothing happens if it is not there."""
        try:
            self._client.delete_run(uuid)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def run(self, uuid: str) -> tuple[dict[str, Any], dict[str, str], dict[str, str], set[str]] | None:
        """Return (info, params, tags, keys of metrics) of a run, None if it is gone."""
        try:
            found = self._client.get_run(uuid)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        info = {**dict(found.info), "name": found.info.run_name}
        return info, dict(found.data.params), dict(found.data.tags), {*found.data.metrics}

    def points(self, uuid: str, keys: Iterable[str]) -> Iterator[Points]:
        """Read the metric points of a run, one metric at a time."""
        for key in keys:
            history = self._client.get_metric_history(uuid, key)
            if history:
                yield one_metric(
                    key,
                    [item.value for item in history],
                    [item.timestamp for item in history],
                    [item.step for item in history],
                )


def one_metric(key: str, values: list[float], times: list[int], steps: list[int]) -> Points:
    """Return points of one metric as MLflow tells them."""
    doubles = np.asarray(values, np.float64)
    is_nan = np.isnan(doubles)
    return Points(
        [key],
        np.zeros(len(doubles), np.intp),
        np.asarray(steps, np.int64),
        np.asarray(times, np.int64),
        np.where(is_nan, 0.0, doubles) + 0.0,
        is_nan,
    )


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Cut a list into lists of at most ``size``."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


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

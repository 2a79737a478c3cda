"""The calls that loading a run takes, over HTTP: a tracking server's own REST API, several requests at once.

Over HTTP there is no transaction. What makes repeating a request safe, call by call:

- points: the server's database keeps equal points once;
- params and tags: the same value again changes nothing;
- creating a run: each creation carries a mark of its own, and is looked for by it before it is sent again;
- deleting a run: one that is deleted already counts as deleted.
"""

from __future__ import annotations

import uuid as uuids
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from neptune_assets.targets.mlflow.batches import bodies
from neptune_assets.targets.mlflow.calls import TEXTS_PER_BATCH, chunks, one_metric
from neptune_assets.targets.mlflow.config import Connection
from neptune_assets.targets.mlflow.database import HeldRun
from neptune_assets.targets.mlflow.points import Points
from neptune_assets.targets.mlflow.wire import RefusedError, Wire

ATTEMPT: Final = "neptune_assets.attempt"
"""Tag with the mark of one attempt to create a run."""

POINTS_PER_PAGE: Final = 25_000

A = TypeVar("A")
B = TypeVar("B")


class Rest:
    """Writes and reads runs of a tracking server. Used by one thread; it has its own for requests."""

    def __init__(self, connection: Connection, in_flight: int) -> None:
        self._wire = Wire(connection, in_flight)
        self._in_flight = in_flight
        self._doubtful: dict[str, tuple[str, str]] = {}

    def held(self, experiments: list[str], condition: str) -> list[HeldRun]:
        """Return the runs that MLflow holds under a condition and nobody deleted."""
        return [
            HeldRun.from_tags(run["info"]["run_id"], run["info"]["artifact_uri"], _texts(run["data"].get("tags")))
            for portion in chunks(experiments, 500)
            for run in self._search(portion, condition)
        ]

    def create_run(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> tuple[str, str]:
        """Create a run; return its id and where its artifacts go."""
        attempt = uuids.uuid4().hex
        retried = False

        def found() -> Any | None:
            nonlocal retried
            retried = True
            runs = list(self._search([experiment_id], f"tags.`{ATTEMPT}` = '{attempt}'"))
            return {"run": runs[0]} if runs else None

        body = {
            "experiment_id": experiment_id,
            "start_time": start,
            "run_name": name,
            "tags": _pairs({**tags, ATTEMPT: attempt}),
        }
        info = self._wire.post("runs/create", f"creating run {name!r}", body, done_already=found)["run"]["info"]
        if retried:
            self._doubtful[info["run_id"]] = (experiment_id, attempt)
        return info["run_id"], info["artifact_uri"]

    def ghosts(self, uuid: str) -> list[str]:
        """Return runs that came into being besides ``uuid`` because its creation was sent more than once."""
        if uuid not in self._doubtful:
            return []
        experiment_id, attempt = self._doubtful.pop(uuid)
        found = self._search([experiment_id], f"tags.`{ATTEMPT}` = '{attempt}'")
        return [run["info"]["run_id"] for run in found if run["info"]["run_id"] != uuid]

    def log_metrics(self, uuid: str, portions: Iterable[Points]) -> int:
        """Send all points in full batches across metrics, a few batches at once; return their number."""

        def send(batch: tuple[bytes, int]) -> int:
            self._wire.post("runs/log-batch", f"{batch[1]:,} points of run {uuid}", batch[0])
            return batch[1]

        return sum(self._several(send, bodies(uuid, portions)))

    def log_texts(self, uuid: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Send params and tags in batches of what a server takes at once, in their order."""
        for kind, texts in (("params", params), ("tags", tags)):
            for chunk in chunks(_pairs(texts), TEXTS_PER_BATCH):
                self._wire.post("runs/log-batch", f"{kind} of run {uuid}", {"run_id": uuid, kind: chunk})

    def finish(self, uuid: str, status: str, end: int) -> None:
        """Set status and end time."""
        self._wire.post("runs/update", f"ending run {uuid}", {"run_id": uuid, "status": status, "end_time": end})

    def delete_run(self, uuid: str) -> None:
        """Put a run in MLflow's trash; nothing happens if it is there or gone for good."""
        try:
            self._wire.post("runs/delete", f"deleting run {uuid}", {"run_id": uuid})
        except RefusedError:
            found = self.run(uuid)
            if found is not None and found[0]["lifecycle_stage"] != "deleted":
                raise

    def run(self, uuid: str) -> tuple[dict[str, Any], dict[str, str], dict[str, str], set[str]] | None:
        """Return (info, params, tags, keys of metrics) of a run, None if it is gone."""
        try:
            found = self._wire.get("runs/get", f"reading run {uuid}", {"run_id": uuid})["run"]
        except RefusedError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        info, data = found["info"], found["data"]
        times = {name: int(info[name]) if name in info else None for name in ("start_time", "end_time")}
        metrics = {item["key"] for item in data.get("metrics", ())}
        return (
            {**info, **times, "name": info.get("run_name", "")},
            _texts(data.get("params")),
            _texts(data.get("tags")),
            metrics,
        )

    def points(self, uuid: str, keys: Iterable[str]) -> Iterator[Points]:
        """Read the metric points of a run, a few metrics at once, in portions of bounded size."""

        def first(key: str) -> tuple[str, Any]:
            return key, self._page(uuid, key, None)

        for key, page in self._several(first, keys):
            while True:
                items = page.get("metrics", ())
                if items:
                    yield one_metric(
                        key,
                        # NaN and infinities are words in MLflow's JSON, and float() reads them.
                        [float(item["value"]) for item in items],
                        [int(item["timestamp"]) for item in items],
                        [int(item.get("step", 0)) for item in items],
                    )
                token = page.get("next_page_token")
                if not token:
                    break
                page = self._page(uuid, key, token)

    def _page(self, uuid: str, key: str, token: str | None) -> Any:
        query = {"run_id": uuid, "metric_key": key, "max_results": str(POINTS_PER_PAGE)}
        if token:
            query["page_token"] = token
        return self._wire.get("metrics/get-history", f"reading metric {key!r} of run {uuid}", query)

    def _search(self, experiments: list[str], condition: str) -> Iterator[Any]:
        body: dict[str, Any] = {"experiment_ids": experiments, "filter": condition, "max_results": 1000}
        while True:
            page = self._wire.post("runs/search", "searching runs", body)
            yield from page.get("runs", ())
            if not page.get("next_page_token"):
                return
            body["page_token"] = page["next_page_token"]

    def _several(self, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Yield what ``work`` makes of each item, in order, a few at once; the first error ends it."""
        waiting: deque[Future[B]] = deque()
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="mlflow") as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) > 2 * self._in_flight:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def _pairs(texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in texts.items()]


def _texts(pairs: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    return {pair["key"]: pair.get("value", "") for pair in pairs or ()}

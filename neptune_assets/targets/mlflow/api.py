"""The way into MLflow call by call: tracking servers, and databases whose schema was not tested.

There is no transaction. A new MLflow run is filled beside the old one and has no digest until everything is there;
then the old one goes, then the digest is set. Whatever has no digest is partial and is thrown away next time. A run
that is replaced gets a new MLflow id. What makes repeating a request safe, call by call:

- points: the server's database keeps equal points once;
- params and tags: the same value again changes nothing;
- creating a run: each creation carries a mark of its own, and is looked for by it before it is sent again;
- deleting a run: one that is deleted already counts as deleted.
"""

from __future__ import annotations

import json
import logging
import time
import uuid as uuids
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from threading import Semaphore
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import requests
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request

from neptune_assets.errors import LakeError, TargetError, TargetUnavailableError
from neptune_assets.retries import RetryPolicy, retry_after
from neptune_assets.targets.mlflow import artifacts, backend, mapping
from neptune_assets.targets.mlflow.artifacts import Artifacts
from neptune_assets.targets.mlflow.backend import Accounts, Content, ExistingRun, Experiments, Job
from neptune_assets.targets.mlflow.connection import TRANSIENT_STATUS, Client, Connection
from neptune_assets.targets.mlflow.points import Points
from neptune_assets.targets.protocol import Receipt

log = logging.getLogger(__name__)

METRICS_PER_BATCH: Final = 1000
"""What a server takes at once."""

BYTES_PER_BATCH: Final = 900_000
"""A server takes a million."""


def bodies(uuid: str, portions: Iterable[Points]) -> Iterator[tuple[bytes, int]]:
    """Yield (body, points in it). Bodies are full but for the last, unless names are very long."""
    head = f'{{"run_id":{json.dumps(uuid)},"metrics":['.encode()
    left: list[pa.StringArray] = []
    for points in portions:
        rows = pa.concat_arrays([*left, _rows(points)])
        longest = pc.max(pc.binary_length(rows)).as_py() or 0
        size = max(1, min(METRICS_PER_BATCH, BYTES_PER_BATCH // (longest + 1)))
        whole = len(rows) - len(rows) % size
        for first in range(0, whole, size):
            yield _body(head, rows.slice(first, size)), size
        left = [rows.slice(whole)]
    for rows in left:
        if len(rows):
            yield _body(head, rows), len(rows)


def _body(head: bytes, rows: pa.StringArray) -> bytes:
    return head + ",".join(rows.to_pylist()).encode() + b"]}"


def _rows(points: Points) -> pa.StringArray:
    """Return one JSON object a point. Arrow writes doubles with the fewest digits that give the same double back."""
    heads = pa.array([f'{{"key":{json.dumps(key, ensure_ascii=False)},"value":' for key in points.keys], pa.string())
    values = pc.cast(pa.array(points.values), pa.string())
    return pc.binary_join_element_wise(
        heads.take(pa.array(points.codes)),
        pc.if_else(pa.array(np.asarray(points.is_nan)), '"NaN"', values),
        ',"timestamp":',
        pc.cast(pa.array(points.times), pa.string()),
        ',"step":',
        pc.cast(pa.array(points.steps), pa.string()),
        "}",
        "",
    )


REQUEST_RETRIES: Final = RetryPolicy((0.5, 1.0, 2.0, 4.0, 8.0, 16.0), jitter=0.25)
"""When a request is sent again."""

RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_HINTS: Final = {
    401: "Log in: targets.mlflow.token_env, or username_env and password_env, name the variables with the credentials.",
    403: "The server knows you but does not let you do this: ask for edit permission on the experiment.",
    404: "It was deleted meanwhile, or tracking_uri lacks a path prefix: look at the address, then load again.",
    413: "Something before the server limits requests: let them be 1 MB (nginx: client_max_body_size).",
}


class RefusedError(TargetError):
    """The server answered, and the answer is no. ``status`` and ``code`` are the server's."""

    def __init__(self, message: str, *, hint: str, status: int, code: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


class HttpClient:
    """Requests to one tracking server, for several threads: kept-alive connections, retries, errors with hints.

    Certificates, proxies and all other ways to log in are MLflow's own (``mlflow.utils.rest_utils.http_request``), so
    every way that its client can log in works here too. Retrying is ours: a request that may have been carried out
    although its answer was lost must be safe to repeat, and the caller says how.
    """

    def __init__(
        self,
        connection: Connection,
        in_flight: int,
        retries: RetryPolicy = REQUEST_RETRIES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = connection
        self._slots = _slots(connection.uri, in_flight)
        self._retries = retries
        self._sleep = sleep

    def get(self, call: str, doing: str, query: Mapping[str, str]) -> Any:
        """Return the JSON answer to a GET of ``call``, for example ``runs/get``."""
        return self._request("GET", call, doing, {"params": dict(query)})

    def post(
        self,
        call: str,
        doing: str,
        body: bytes | Mapping[str, Any],
        *,
        done_already: Callable[[], Any | None] | None = None,
    ) -> Any:
        """Return the JSON answer to a POST of a JSON body.

        Sent again if no answer came or the server was in trouble. ``done_already`` is asked before that: what it
        returns, unless None, is the answer, because the first request was carried out after all.
        Raises :class:`RefusedError` if the server says no, TargetUnavailableError if it stays in trouble.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._request("POST", call, doing, {"data": data}, done_already)

    def _request(
        self,
        method: str,
        call: str,
        doing: str,
        content: Mapping[str, Any],
        done_already: Callable[[], Any | None] | None = None,
    ) -> Any:
        where, failures = self._connection.display_url, 0
        while True:
            asked: float | None = None
            try:
                with self._slots:
                    response = http_request(  # type: ignore[no-untyped-call]
                        self._connection.credentials.host_creds(self._connection.uri),
                        f"/api/2.0/mlflow/{call}",
                        method,
                        max_retries=0,
                        retry_codes=frozenset(),
                        raise_on_status=False,
                        extra_headers={"Content-Type": "application/json"},
                        **content,
                    )
            except (MlflowException, requests.RequestException) as error:
                if not _lost(error):
                    raise
                trouble = "no answer: " + _cause(error)
            else:
                if response.ok:
                    return self._json(response, doing)
                status, code, message = self._refusal(response)
                if status not in RETRIED and not _met_itself(status, message):
                    raise RefusedError(
                        f"MLflow at {where} refused {doing} with status {status}: {message}.",
                        hint=_HINTS.get(status, "See the server's log for more."),
                        status=status,
                        code=code,
                    )
                trouble = f"status {status}: {message}"
                asked = retry_after(response.headers.get("Retry-After"))
            failures += 1
            pause = self._retries.pause(failures, asked)
            if pause is None:
                raise TargetUnavailableError(
                    f"MLflow at {where}: {doing} failed after {self._retries.tries} attempts; last error: {trouble}.",
                    hint="Look at the server's log; load again when it is well. Finished runs are not loaded twice.",
                    retried=True,
                )
            log.info("MLflow at %s: %s failed (%s); retrying in %.1f s.", where, doing, trouble, pause)
            self._sleep(pause)
            if done_already is not None and (answer := done_already()) is not None:
                return answer

    def check(self) -> None:
        """Ask the server for a sign of life, once. Raises TargetUnavailableError if it gives none."""
        where = self._connection.display_url
        try:
            response = requests.get(f"{self._connection.uri}/health", timeout=15)
        except requests.RequestException as error:
            raise TargetUnavailableError(
                f"No MLflow server answers at {where}: {self._connection.first_line(error)}.",
                hint="Start it, or correct targets.mlflow.tracking_uri.",
            ) from error
        if response.status_code in TRANSIENT_STATUS:
            raise TargetUnavailableError(
                f"MLflow at {where} answers with status {response.status_code}.",
                hint="Wait until the server is ready, then load again.",
            )

    def _refusal(self, response: requests.Response) -> tuple[int, str, str]:
        """Return status, MLflow's error code or "", and the first line of the message."""
        code, text = "", response.text
        try:
            answer = response.json()
            code, text = str(answer["error_code"]), str(answer["message"])
        except (ValueError, KeyError, TypeError):
            pass
        lines = self._connection.redacted(text).strip().splitlines()
        return response.status_code, code, (lines[0] if lines else response.reason or "no message")[:300].rstrip(".")

    def _json(self, response: requests.Response, doing: str) -> Any:
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise TargetError(
                f"{self._connection.display_url} does not respond like an MLflow server: {doing} returned "
                f"{self._connection.redacted(response.text)[:80]!r}.",
                hint="Look at targets.mlflow.tracking_uri; a login page may stand before the server.",
            ) from error


@cache
def _slots(uri: str, in_flight: int) -> Semaphore:
    """Return what limits requests at once to one server, however many runs are loaded and read back at the time."""
    return Semaphore(in_flight)


def _lost(error: BaseException) -> bool:
    """True if the request may or may not have arrived. MLflow wraps what requests raises."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
            # A certificate that is not trusted stays so.
            return not isinstance(current, requests.exceptions.SSLError)
        current = current.__cause__ or current.__context__
    return False


def _cause(error: BaseException) -> str:
    current = error
    while not isinstance(current, requests.RequestException) and (current.__cause__ or current.__context__):
        current = current.__cause__ or current.__context__ or current
    if isinstance(current, requests.Timeout):
        return "the time was up (MLFLOW_HTTP_REQUEST_TIMEOUT)"
    return f"{type(current).__name__}"


def _met_itself(status: int, message: str) -> bool:
    """True if two requests of ours got in each other's way in the server's database.

    The first points of a metric in two requests at once, or a request beside its own repetition, can both insert one
    row; the database refuses one of them, and MLflow passes that on as a bad request.
    """
    return status == 400 and ("IntegrityError" in message or "UniqueViolation" in message)


TEXTS_PER_BATCH: Final = 100

T = TypeVar("T")


class ClientApi:
    """What HTTP has no way to: databases of an untested schema or another kind, through MLflow's client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def check(self) -> None:
        """Raise MlflowException unless experiments can be listed."""
        self._client.search_experiments(max_results=1)

    def find_experiment(self, name: str) -> tuple[str, str, str] | None:
        """Return (id, artifact location, lifecycle stage) of an experiment, None if there is none of that name."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return None
        return str(found.experiment_id), str(found.artifact_location), str(found.lifecycle_stage)

    def create_experiment(self, name: str, location: str | None) -> None:
        """Create an experiment, unless another load did so at the same moment."""
        try:
            self._client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def experiment_ids(self) -> list[str]:
        """Return the ids of all experiments that are not deleted."""
        ids: list[str] = []
        token: str | None = None
        while True:
            page = self._client.search_experiments(ViewType.ACTIVE_ONLY, max_results=1000, page_token=token)
            ids += [str(item.experiment_id) for item in page]
            token = page.token
            if not token:
                return ids

    def existing_runs(self, condition: str) -> list[ExistingRun]:
        """Return the runs that MLflow holds under a condition and nobody deleted."""
        found: list[ExistingRun] = []
        for portion in chunks(self.experiment_ids(), 500):
            token: str | None = None
            while True:
                page = self._client.search_runs(
                    portion, condition, ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
                )
                found += [
                    ExistingRun.from_tags(run.info.run_id, run.info.artifact_uri, dict(run.data.tags)) for run in page
                ]
                token = page.token
                if not token:
                    break
        return found

    def create_run(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> tuple[str, str]:
        """Create a run; return its id and where its artifacts go."""
        info = self._client.create_run(experiment_id, start_time=start, tags=dict(tags), run_name=name).info
        return info.run_id, info.artifact_uri

    def duplicate_runs(self, uuid: str) -> list[str]:
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
    """Return points of one metric as MLflow reports them."""
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
        for code, value, moment, step in zip(
            points.codes.tolist(), values, points.times.tolist(), points.steps.tolist(), strict=True
        ):
            batch.append(Metric(points.keys[code], value, moment, step))
            if len(batch) == METRICS_PER_BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


ATTEMPT: Final = "neptune_assets.attempt"
"""Tag with the mark of one attempt to create a run."""

POINTS_PER_PAGE: Final = 25_000

A = TypeVar("A")
B = TypeVar("B")


class HttpApi:
    """Writes and reads runs of a tracking server. Used by one thread; it has its own for requests."""

    def __init__(self, connection: Connection, in_flight: int, retries: RetryPolicy = REQUEST_RETRIES) -> None:
        self._http = HttpClient(connection, in_flight, retries)
        self._in_flight = in_flight
        self._doubtful: dict[str, tuple[str, str]] = {}

    def check(self) -> None:
        """Raise TargetUnavailableError or TargetError unless experiments can be listed."""
        self._http.check()
        self._http.post("experiments/search", "listing experiments", {"max_results": 1})

    def find_experiment(self, name: str) -> tuple[str, str, str] | None:
        """Return (id, artifact location, lifecycle stage) of an experiment, None if there is none of that name."""
        try:
            query = {"experiment_name": name}
            found = self._http.get("experiments/get-by-name", f"looking for experiment {name!r}", query)["experiment"]
        except RefusedError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(found["experiment_id"]), str(found["artifact_location"]), str(found["lifecycle_stage"])

    def create_experiment(self, name: str, location: str | None) -> None:
        """Create an experiment, unless another load did so at the same moment or the answer was lost."""
        body = {"name": name} if location is None else {"name": name, "artifact_location": location}
        try:
            self._http.post("experiments/create", f"creating experiment {name!r}", body)
        except RefusedError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise

    def experiment_ids(self) -> list[str]:
        """Return the ids of all experiments that are not deleted."""
        listed = self._pages("experiments/search", "listing experiments", {"view_type": "ACTIVE_ONLY"}, "experiments")
        return [str(item["experiment_id"]) for item in listed]

    def existing_runs(self, condition: str) -> list[ExistingRun]:
        """Return the runs that MLflow holds under a condition and nobody deleted."""
        return [
            ExistingRun.from_tags(run["info"]["run_id"], run["info"]["artifact_uri"], _texts(run["data"].get("tags")))
            for portion in chunks(self.experiment_ids(), 500)
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
        info = self._http.post("runs/create", f"creating run {name!r}", body, done_already=found)["run"]["info"]
        if retried:
            self._doubtful[info["run_id"]] = (experiment_id, attempt)
        return info["run_id"], info["artifact_uri"]

    def duplicate_runs(self, uuid: str) -> list[str]:
        """Return runs that came into being besides ``uuid`` because its creation was sent more than once."""
        if uuid not in self._doubtful:
            return []
        experiment_id, attempt = self._doubtful.pop(uuid)
        found = self._search([experiment_id], f"tags.`{ATTEMPT}` = '{attempt}'")
        return [run["info"]["run_id"] for run in found if run["info"]["run_id"] != uuid]

    def log_metrics(self, uuid: str, portions: Iterable[Points]) -> int:
        """Send all points in full batches across metrics, a few batches at once; return their number."""

        def send(batch: tuple[bytes, int]) -> int:
            self._http.post("runs/log-batch", f"{batch[1]:,} points of run {uuid}", batch[0])
            return batch[1]

        return sum(self._several(send, bodies(uuid, portions)))

    def log_texts(self, uuid: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Send params and tags in batches of what a server takes at once, in their order."""
        for kind, texts in (("params", params), ("tags", tags)):
            for chunk in chunks(_pairs(texts), TEXTS_PER_BATCH):
                self._http.post("runs/log-batch", f"{kind} of run {uuid}", {"run_id": uuid, kind: chunk})

    def finish(self, uuid: str, status: str, end: int) -> None:
        """Set status and end time."""
        self._http.post("runs/update", f"ending run {uuid}", {"run_id": uuid, "status": status, "end_time": end})

    def delete_run(self, uuid: str) -> None:
        """Put a run in MLflow's trash; nothing happens if it is there or gone for good."""
        try:
            self._http.post("runs/delete", f"deleting run {uuid}", {"run_id": uuid})
        except RefusedError:
            found = self.run(uuid)
            if found is not None and found[0]["lifecycle_stage"] != "deleted":
                raise

    def run(self, uuid: str) -> tuple[dict[str, Any], dict[str, str], dict[str, str], set[str]] | None:
        """Return (info, params, tags, keys of metrics) of a run, None if it is gone."""
        try:
            found = self._http.get("runs/get", f"reading run {uuid}", {"run_id": uuid})["run"]
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
        return self._http.get("metrics/get-history", f"reading metric {key!r} of run {uuid}", query)

    def _search(self, experiments: list[str], condition: str) -> Iterator[Any]:
        return self._pages(
            "runs/search", "searching runs", {"experiment_ids": experiments, "filter": condition}, "runs"
        )

    def _pages(self, call: str, doing: str, body: Mapping[str, Any], items: str) -> Iterator[Any]:
        asked = {**body, "max_results": 1000}
        while True:
            page = self._http.post(call, doing, asked)
            yield from page.get(items, ())
            if not page.get("next_page_token"):
                return
            asked["page_token"] = page["next_page_token"]

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


class ApiBackend:
    """Writes and reads runs call by call: of a server over HTTP, of a database that cannot be written directly."""

    def __init__(self, connection: Connection, in_flight: int, retries: RetryPolicy = REQUEST_RETRIES) -> None:
        """``in_flight`` is how many requests a server gets at once."""
        self._connection = connection
        self._in_flight = in_flight
        self._retries = retries
        self._experiments = Experiments(
            connection.artifact_root,
            lambda name: self._api.find_experiment(name),
            lambda name, location: self._api.create_experiment(name, location),
        )

    @property
    def runs_at_once(self) -> int:
        """As many as requests at once; MLflow's client on a database takes one run after the other."""
        return self._in_flight if self._connection.dialect is None else 1

    @cached_property
    def _api(self) -> HttpApi | ClientApi:
        if self._connection.dialect is None:
            return HttpApi(self._connection, self._in_flight, self._retries)
        return ClientApi(Client(self._connection))

    def check(self) -> None:
        """Raise TargetUnavailableError or TargetError unless experiments can be listed."""
        with self._connection.errors("listing experiments"):
            self._api.check()

    def experiment(self, name: str) -> tuple[str, str]:
        """Return (id, artifact location) of the experiment, created if it is missing."""
        with self._connection.errors(f"looking for experiment {name!r}"):
            return self._experiments.get(name)

    def existing_runs(self, project_key: str) -> list[ExistingRun]:
        """Return the runs of one project that loads left in MLflow and nobody deleted."""
        return self._api.existing_runs(f"tags.`{mapping.PROJECT_KEY}` = '{project_key}'")

    def replace(self, job: Job) -> tuple[ExistingRun, Receipt]:
        """Make MLflow hold exactly this run. The digest goes in last."""
        calls, run, plan = self._api, job.run, job.plan
        # What another load left unfinished goes first, so that there is never more than one of them.
        for item in job.old:
            if item.digest is None:
                self._discard(item)
        tags = dict(job.tags)
        first = {name: tags[name] for name in (mapping.KEY, mapping.PROJECT_KEY, mapping.PROJECT, mapping.RUN_ID)}
        run_uuid, uri = calls.create_run(job.experiment_id, plan.run_name, plan.start, first)
        store = self._artifacts(uri)
        accounts = Accounts(job, store)
        try:
            artifacts.write_artifacts(run, plan, store, accounts.counts)
            stream = job.stream()
            calls.log_metrics(run_uuid, stream)
            accounts.settle(stream)
        except LakeError:
            # The lake is to blame, and MLflow can be asked: nothing half is left beside the run that it holds.
            self._discard(ExistingRun.from_tags(run_uuid, store.uri, first))
            raise
        digest = {mapping.DIGEST: tags.pop(mapping.DIGEST)}
        calls.log_texts(run_uuid, plan.params, tags)
        for child in job.children:
            calls.log_texts(child, {}, {mapping.PARENT_RUN: run_uuid})
        calls.finish(run_uuid, "FAILED" if plan.failed else "FINISHED", plan.end)
        for duplicate in calls.duplicate_runs(run_uuid):
            calls.delete_run(duplicate)
        for item in job.old:
            if item.digest is not None:
                self._discard(item)
        calls.log_texts(run_uuid, {}, digest)
        if any(item.digest is not None for item in job.old):
            accounts.counts.notes.append("the run it replaces is in MLflow's trash until `mlflow gc`")
        return ExistingRun.from_tags(run_uuid, store.uri, {**tags, **digest}), accounts.receipt(run_uuid)

    def remove(self, runs: list[ExistingRun]) -> None:
        """Put runs into MLflow's trash."""
        for item in runs:
            self._api.delete_run(item.uuid)

    def content(self, run_uuid: str, expected: set[str]) -> Content | None:
        """Return what MLflow holds of a run, None if it is gone. Its metrics and those ``expected`` are read."""
        found = self._api.run(run_uuid)
        if found is None:
            return None
        info, params, tags, metrics = found
        points = backend.sum_points(self._api.points(run_uuid, sorted({*expected, *metrics})))
        return Content(info, points, None, params, tags)

    def _artifacts(self, uri: str) -> Artifacts:
        return Artifacts(uri, self._connection)

    def _discard(self, item: ExistingRun) -> None:
        self._api.delete_run(item.uuid)
        try:
            self._artifacts(item.artifact_uri).delete()
        except MlflowException as error:
            log.warning("Artifacts of the replaced MLflow run %s were not deleted: %s", item.uuid, error)

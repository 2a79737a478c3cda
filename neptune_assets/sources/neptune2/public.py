"""Calls answered by neptune-client's public functions, for clients whose connection is not known.

Slower, and poorer where the public functions are: whole series are held in memory, times of points come as local times
without a zone, all images of a series are fetched at once, and of git only the commit's id is told.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from neptune_assets.errors import SourceError
from neptune_assets.sources.neptune2.connection import import_client, refused
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.public_container import Container, written
from neptune_assets.sources.neptune2.retrying import PASSING, PassingError, Retries, reason
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.token import ApiToken

_PREFIX: Final = "client:"
"""Begins the address of an archive that the client itself fetches."""


class PublicCalls:
    """Answers calls as the server would, by the client's public functions."""

    tables_tell_all = False

    def __init__(self, token: ApiToken, settings: Neptune2Source) -> None:
        import_client(settings)
        self._token = token
        self._retries = Retries(settings, token.url, self._alive)
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Container] = OrderedDict()
        self._kept = 2 * settings.concurrency
        self.count = 0

    def json(
        self, operation: str, headers: Mapping[str, str] | None = None, *, tries: int | None = None, **parameters: Any
    ) -> Any:
        """See :meth:`.calls.Calls.json`."""
        answers: dict[str, Callable[..., Any]] = {
            "listProjects": self._list_projects,
            "getProject": self._project,
            "searchLeaderboardEntries": self._table,
            "getExperimentAttributes": lambda experimentId: self._container(experimentId).described(),  # noqa: N803
            "listArtifactFiles": self._artifact,
            "prepareForDownloadFileSetAttributeZip": self._archive,
        }
        answer = answers.get(operation)
        if answer is None:
            container = self._container(parameters["experimentId"])
            return self._run(operation, parameters, lambda: container.answer(operation, parameters))
        return self._run(operation, parameters, lambda: answer(**parameters))

    def download(
        self, operation: str, sink: BinaryIO, size: int | None = None, *, most: int | None = None, **parameters: Any
    ) -> None:
        """See :meth:`.calls.Calls.download`."""
        container = self._container(parameters["experimentId"])

        def fetch() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = container.fetched(Path(folder), parameters["attribute"], parameters.get("index"))
                sink.seek(0)
                sink.truncate()
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, sink)
            if size is not None and sink.tell() != size:
                raise PassingError(f"it sent {sink.tell():,} of {size:,} bytes")

        self._run(operation, parameters, fetch)

    def download_url(self, url: str, sink: BinaryIO, most: int) -> None:
        """See :meth:`.calls.Calls.download_url`."""
        key, _, attribute = url.removeprefix(_PREFIX).partition("\n")
        self.download("FileSet.download", sink, experimentId=key, attribute=attribute)

    def _run(self, operation: str, parameters: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        def attempt() -> Any:
            with self._slots:
                with self._lock:
                    self.count += 1
                return _translated(work, self._token.url)

        return self._retries.run(operation, parameters, attempt)

    def _alive(self) -> bool:
        try:
            _translated(lambda: self._list_projects(), self._token.url)
        except PassingError:
            return False
        return True

    def _list_projects(self, **_: Any) -> Any:
        from neptune import management

        names = management.get_project_list(api_token=self._token.text)
        entries = [
            {"organizationName": workspace, "name": name}
            for workspace, _, name in (project.partition("/") for project in names)
        ]
        return {"entries": entries}

    def _project(self, projectIdentifier: str) -> Any:  # noqa: N803 - the protocol's names
        with self._opened_project(projectIdentifier):
            return {"id": projectIdentifier}

    def _opened_project(self, name: str) -> Any:
        import neptune

        return neptune.init_project(project=name, api_token=self._token.text, mode="read-only")

    def _table(self, projectIdentifier: str, type: list[str], params: Mapping[str, Any]) -> Any:  # noqa: A002, N803
        page, columns = params["pagination"], [item["path"] for item in params["attributeFilters"]]
        if page["offset"] or not page["limit"]:
            return {"entries": []}
        arguments = {
            "query": params["query"]["query"] or None,
            "columns": columns,
            "sort_by": "sys/id",
            "ascending": True,
            "progress_bar": False,
        }
        with self._opened_project(projectIdentifier) as project:
            if type == ["run"]:
                rows = list(project.fetch_runs_table(trashed=None, **arguments))
            else:
                rows = list(project.fetch_models_table(trashed=None, **arguments))
        if type == ["modelVersion"]:
            models = [row.get_attribute_value("sys/id") for row in rows]
            rows = [row for model in models for row in self._versions(projectIdentifier, model, arguments)]
        entries = [_entry(f"{projectIdentifier}\t{type[0]}", row, columns) for row in rows]
        return {"entries": entries}

    def _versions(self, project: str, model: str, arguments: Mapping[str, Any]) -> list[Any]:
        import neptune

        with neptune.init_model(
            with_id=model, project=project, api_token=self._token.text, mode="read-only"
        ) as container:
            return list(container.fetch_model_versions_table(**arguments))

    def _container(self, key: str) -> Container:
        with self._lock:
            container = self._known.pop(key, None) or Container(key, self._token.text)
            self._known[key] = container
            if len(self._known) > self._kept:
                self._known.popitem(last=False)
        return container

    def _artifact(self, projectIdentifier: str, hash: str) -> Any:  # noqa: A002, N803
        key, _, path = hash.partition("\n")
        return self._container(key).artifact(path)

    def _archive(self, experimentId: str, attribute: str) -> Any:  # noqa: N803
        return {"id": "", "downloadUrl": f"{_PREFIX}{experimentId}\n{attribute}"}


def _entry(prefix: str, row: Any, columns: list[str]) -> dict[str, Any]:
    attributes = []
    for column in columns:
        try:
            value = row.get_attribute_value(column)
        except ValueError:
            continue
        value = written(value) if isinstance(value, datetime) else value
        attributes.append({"name": column, "type": "any", "anyProperties": {"value": value}})
    return {"experimentId": f"{prefix}\t{row.get_attribute_value('sys/id')}", "attributes": attributes}


def _translated(work: Callable[[], Any], url: str) -> Any:
    """Do the work, with the client's errors turned into ours."""
    import requests
    from bravado.exception import BravadoConnectionError, BravadoTimeoutError, HTTPError
    from neptune import exceptions
    from neptune.common import exceptions as common

    try:
        return work()
    except (common.NeptuneInvalidApiTokenException, common.Unauthorized) as error:
        raise refused(url) from error
    except (exceptions.MetadataContainerNotFound, exceptions.FetchAttributeNotFoundException) as error:
        raise CallError(f"The server does not have it: {type(error).__name__}.", hint="", status=404) from error
    except common.Forbidden as error:
        raise CallError("The server does not let the token's user see it.", hint="", status=403) from error
    except (
        common.NeptuneConnectionLostException,
        requests.RequestException,
        BravadoConnectionError,
        BravadoTimeoutError,
    ) as error:
        raise PassingError(reason(error)) from error
    except common.ClientHttpError as error:
        raise CallError(f"The server refused it: HTTP {error.status}.", hint="", status=error.status) from error
    except HTTPError as error:
        # Raised bare while a table is read, which the client does not retry.
        if error.status_code in PASSING:
            raise PassingError(f"HTTP {error.status_code}", error.status_code) from error
        raise CallError(
            f"The server refused it: HTTP {error.status_code}.", hint="", status=error.status_code
        ) from error
    except common.NeptuneException as error:
        raise SourceError(f"neptune-client failed: {type(error).__name__}.", hint="See its message above.") from error

"""Speaks the 2.x protocol to a server, call by call, for what the real client never does or hides."""

from __future__ import annotations

from typing import Any

import httpx

from neptune_assets.server.neptune2.swagger import OPERATIONS

PROJECT = "team/vision"
_CALLS = {operation.name: operation for operation in OPERATIONS}


class Http:
    """One session. ``call`` answers with the parsed body and fails for errors; ``status`` with the status only."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def post(self, path: str, **options: Any) -> Any:
        """Post to an address of one's own and return the parsed body."""
        return self.client.post(path, **options).raise_for_status().json()

    def raw(self, name: str, body: Any = None, **query: Any) -> httpx.Response:
        """Make one call of the contract; ``body`` is JSON unless it is bytes."""
        operation = _CALLS[name]
        content = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        headers = query.pop("headers", None)
        return self.client.request(operation.method, operation.path, params=query, headers=headers, **content)

    def call(self, name: str, body: Any = None, **query: Any) -> Any:
        """Make one call and return its parsed body."""
        answer = self.raw(name, body, **query)
        assert answer.status_code == 200, f"{name}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def status(self, name: str, body: Any = None, **query: Any) -> int:
        """Make one call and return the status."""
        return self.raw(name, body, **query).status_code

    def create(self, kind: str = "run", **fields: Any) -> dict[str, Any]:
        """Make a run, model or version."""
        wanted = {"projectIdentifier": PROJECT, "parentId": PROJECT, "type": kind, **fields}
        made: dict[str, Any] = self.call("createExperiment", wanted)
        return made

    def apply(self, experiment: str, *operations: tuple[str, str, dict[str, Any]]) -> list[str]:
        """Apply (path, name, body) and return the errors."""
        body = [{"path": path, name: content} for path, name, content in operations]
        answer = self.call("executeOperations", body, experimentId=experiment)
        return [item["errorDescription"] for item in answer]

    def attributes(self, experiment: str) -> dict[str, Any]:
        """Return type and properties of all attributes by name."""
        found = self.call("getExperimentAttributes", experimentId=experiment)["attributes"]
        return {item["name"]: (item["type"], item[f"{item['type']}Properties"]) for item in found}

    def table(self, kind: str = "run", query: str = "", **sorting: Any) -> list[dict[str, Any]]:
        """Return the ids and values of all rows, as one page."""
        body = {"query": {"query": query}, "pagination": {"limit": 1000, "offset": 0}, **sorting}
        found = self.call("searchLeaderboardEntries", body, projectIdentifier=PROJECT, type=kind)["entries"]
        return [{item["name"]: item[f"{item['type']}Properties"] for item in entry["attributes"]} for entry in found]


def points(*values: Any, steps: list[float | None] | None = None, time: int = 1000) -> dict[str, Any]:
    """Return the body of a log operation; without ``steps`` the server numbers them."""
    numbers = [None] * len(values) if steps is None else steps
    return {
        "entries": [
            {"value": value, "step": step, "timestampMilliseconds": time + index}
            for index, (value, step) in enumerate(zip(values, numbers, strict=True))
        ]
    }

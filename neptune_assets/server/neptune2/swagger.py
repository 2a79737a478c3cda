"""The three swagger documents that the 2.x client builds its calls from, made of the tables in ``contract``.

The client ships no description of the protocol: it fetches these documents and lets bravado make its methods from them.
Only what it uses is described. bravado resolves ``client.api.<operationId>`` by the first segment of the path where
operations carry no tags, and takes the address that the document came from where no host is named: neither is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from neptune_assets.server.neptune2.contract import DEFINITIONS, OPERATIONS, SERVICES

_TYPES: Final[Mapping[str, dict[str, Any]]] = MappingProxyType(
    {
        "string": {"type": "string"},
        "integer": {"type": "integer", "format": "int64"},
        # `double` is what makes bravado turn a JSON 1 into 1.0.
        "number": {"type": "number", "format": "double"},
        "boolean": {"type": "boolean"},
        "datetime": {"type": "string", "format": "date-time"},
        "bytes": {"type": "file"},
    }
)


def _schema(kind: str) -> dict[str, Any]:
    if kind.startswith("["):
        return {"type": "array", "items": _schema(kind[1:-1])}
    if kind in _TYPES:
        return dict(_TYPES[kind])
    return {"$ref": f"#/definitions/{kind}"}


def _parameter(text: str) -> dict[str, Any]:
    name, _, kind = text.partition(":")
    if kind.startswith("body"):
        _, _, definition = kind.partition("=")
        # An empty schema lets a body through as it is; one that holds dates needs to say so.
        return {"name": name, "in": "body", "schema": _schema(definition) if definition else {}}
    if kind == "header":
        return {"name": name, "in": "header", "type": "string"}
    if kind == "list":
        items = {"type": "string"}
        return {"name": name, "in": "query", "type": "array", "items": items, "collectionFormat": "multi"}
    return {"name": name, "in": "query", **_TYPES[kind or "string"]}


def _definition(text: str) -> dict[str, Any]:
    fields = (field.partition(":") for field in text.split())
    return {"type": "object", "properties": {name: _schema(kind or "string") for name, _, kind in fields}}


def document(service: str) -> dict[str, Any]:
    """Return the swagger document of one service (``backend``, ``leaderboard``, ``artifacts``), made anew.

    Raises KeyError where there is no such service.
    """
    if service not in SERVICES:
        raise KeyError(service)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        if operation.service != service:
            continue
        reply: dict[str, Any] = {"description": "OK"}
        if operation.reply:
            reply["schema"] = _schema(operation.reply)
        paths.setdefault(operation.path, {})[operation.method.lower()] = {
            "operationId": operation.name,
            "parameters": [_parameter(text) for text in operation.parameters.split()],
            "responses": {
                "200": reply,
                "400": {"description": "Bad request", "schema": _schema("Rejection")},
                "default": {"description": "Refused"},
            },
        }
    definitions = {name: _definition(text) for name, text in DEFINITIONS.items()}
    # What the management calls read of a refused request.
    definitions["Rejection"] = {"type": "object", "properties": {"validationErrors": {"type": "array", "items": {}}}}
    return {
        "swagger": "2.0",
        "info": {"title": f"Neptune {service}", "version": "1"},
        "basePath": "/",
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": paths,
        "definitions": definitions,
    }

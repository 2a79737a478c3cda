"""How a client begins: configuration, tokens, and the projects it may see or make."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from neptune_assets.errors import SettingsError
from neptune_assets.server.endpoints import ApiError, Call, Endpoint
from neptune_assets.server.service import Service
from neptune_assets.server.tokens import CLIENT_ID, REALM

_BACKEND = "/api/backend/v1"
_MAX_FIELDS = 32


def routes() -> list[BaseRoute]:
    """Routes of sessions and projects, which both generations of clients use."""
    return [
        Endpoint(f"{_BACKEND}/clients/config", client_config, ("GET",), public=True).route(),
        Endpoint(f"{REALM}/.well-known/openid-configuration", openid_configuration, ("GET",), public=True).route(),
        Endpoint(f"{_BACKEND}/authorization/oauth-token", exchange_token, ("GET",), public=True).route(),
        Endpoint(f"{REALM}/protocol/openid-connect/token", refresh_token, public=True).route(),
        Endpoint(f"{_BACKEND}/projects", create_project, ("POST",), writes=True).route(),
        Endpoint(f"{_BACKEND}/projects", list_projects, ("GET",)).route(),
        Endpoint(f"{_BACKEND}/projects/get", get_project, ("GET",)).route(),
    ]


def client_config(call: Call) -> Response:
    """Where everything is. Holds what 2.x clients look for too."""
    url = call.base_url
    return JSONResponse(
        {
            "apiUrl": url,
            "applicationUrl": url,
            "pyLibVersions": {},
            "multiPartUpload": {
                "enabled": True,
                "minChunkSize": 5 << 20,
                "maxChunkSize": 16 << 20,
                # Clients make parts larger than the least size only where there would be more than this many.
                "maxChunkCount": 20_000,
                "maxSinglePartSize": 5 << 20,
            },
            "artifacts": {"enabled": True, "apiVersion": 2},
            "sysNameSetByBackend": False,
            "security": {
                "clientId": CLIENT_ID,
                "openIdDiscovery": f"{url}{REALM}/.well-known/openid-configuration",
            },
        }
    )


def openid_configuration(call: Call) -> Response:
    """Where tokens are refreshed, in OpenID's words."""
    issuer = f"{call.base_url}{REALM}"
    return JSONResponse(
        {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/protocol/openid-connect/auth",
            "token_endpoint": f"{issuer}/protocol/openid-connect/token",
            "grant_types_supported": ["refresh_token"],
            "response_types_supported": ["token"],
        }
    )


def exchange_token(call: Call) -> Response:
    """Turn the API token of the header into an access token."""
    attempts, address = call.service.attempts, call.request.client.host if call.request.client else ""
    if attempts.exhausted(address):
        raise ApiError(429, "TOO_MANY_REQUESTS", "Too many wrong API tokens came from this address; try again later.")
    token = call.request.headers.get("x-neptune-api-token", "")
    found = call.service.tokens.exchange(token, call.base_url)
    if found is None:
        if token:
            attempts.failed(address)
        raise ApiError(401, "INVALID_API_TOKEN", "This API token is not of this server.")
    return JSONResponse(found)


def refresh_token(call: Call) -> Response:
    """Turn a refresh token into a new access token."""
    try:
        form = parse_qs(call.body.decode("utf-8", "replace"), max_num_fields=_MAX_FIELDS)
    except ValueError:
        form = {}
    found = call.service.tokens.refresh(form.get("refresh_token", [""])[0], call.base_url)
    if form.get("grant_type") != ["refresh_token"] or found is None:
        return JSONResponse({"error": "invalid_grant"}, status_code=400)
    return JSONResponse(found)


def create_project(call: Call) -> Response:
    """Make a project; 409 if it is there."""
    body = call.json_object()
    fields = body.get("projectToCreate") or body
    if not isinstance(fields, dict):
        raise ApiError(400, "BAD_REQUEST", "projectToCreate must be a JSON object.")
    workspace, name = fields.get("organizationIdentifier") or fields.get("organizationId"), fields.get("name")
    if not isinstance(workspace, str) or not isinstance(name, str) or not workspace or not name:
        raise ApiError(400, "PROJECT_NAME_INVALID", "A project needs a name and the identifier of its organization.")
    project_id = f"{workspace}/{name}"
    service = call.service
    if project_id in service.projects():
        raise ApiError(409, "PROJECT_NAME_COLLISION", f"Project {project_id!r} exists.")
    key = fields.get("projectKey")
    try:
        service.store.project(project_id, create=True, key=key if isinstance(key, str) and key else None)
    except SettingsError as error:
        raise ApiError(400, "PROJECT_NAME_INVALID", str(error)) from None
    return JSONResponse(project_body(service, project_id))


def list_projects(call: Call) -> Response:
    """All projects; ``organizationIdentifier`` and ``searchTerm`` narrow them down."""
    workspace = call.query.get("organizationIdentifier")
    term = call.query.get("searchTerm", "").lower()
    entries = [
        project_body(call.service, project_id)
        for project_id in call.service.projects()
        if workspace in {None, "", project_id.partition("/")[0]} and term in project_id.lower()
    ]
    offset, limit = (call.query.get(name) for name in ("offset", "limit"))
    if not all(number is None or (number.isdecimal() and number.isascii()) for number in (offset, limit)):
        raise ApiError(400, "BAD_REQUEST", "offset and limit must be whole numbers from 0 on.")
    start = int(offset or 0)
    entries, total = entries[start : None if limit is None else start + int(limit)], len(entries)
    return JSONResponse({"entries": entries, "totalItemCount": total})


def get_project(call: Call) -> Response:
    """One project by ``workspace/project``, or by its uuid."""
    wanted = call.query.get("projectIdentifier", "")
    service = call.service
    for project_id in service.store.projects():
        if wanted == service.store.project(project_id).uuid:
            wanted = project_id
    # Only 2.x clients ask so, before they write; they list what there is after a 404.
    if wanted not in service.projects() and not service.may_be_made(wanted):
        raise ApiError(404, "PROJECT_NOT_FOUND", f"There is no project {wanted!r}.")
    return JSONResponse(project_body(service, wanted))


def project_body(service: Service, project_id: str) -> dict[str, Any]:
    """A project as clients of both generations read it."""
    workspace, _, name = project_id.partition("/")
    known = {"id": project_id, "projectKey": ""}
    if project_id in service.store.projects():
        project = service.store.project(project_id)
        known = {"id": project.uuid, "projectKey": project.key}
    return {
        **known,
        "name": name,
        "organizationName": workspace,
        "organizationId": workspace,
        "visibility": "priv",
        "version": 2,
        "description": "",
    }

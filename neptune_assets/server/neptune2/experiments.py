"""Handlers: open, make, trash and delete runs, models and versions; signs of life; operations on their attributes."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.responses import Response

from neptune_assets.server.endpoints import Call
from neptune_assets.server.neptune2.containers import TYPES, Container
from neptune_assets.server.neptune2.responses import BadRequestError, ExperimentNotFoundError, Json, NotFoundError
from neptune_assets.server.neptune2.state import state_of, text_of
from neptune_assets.server.neptune2.writing import (
    Application,
    Resent,
    answer_of,
    needs_numbers,
    parse_operations,
    remember,
    remembered,
)


def get_experiment(call: Call) -> Response:
    """Return one object by uuid or ``workspace/project/SYS-ID``."""
    try:
        return Json(_body(call, state_of(call).containers.find(text_of(call, "experimentId"))))
    except NotFoundError as error:
        raise ExperimentNotFoundError(str(error)) from error


def create_experiment(call: Call) -> Response:
    """Make a run, a model or a version of one."""
    return Json(_body(call, state_of(call).creation.create(call.json_object())))


def trash_experiments(call: Call) -> Response:
    """Put objects into the trash."""
    state = state_of(call)
    project_id = state.containers.project_id(text_of(call, "projectIdentifier"))
    done, errors = state.creation.set_trashed(project_id, _identifiers(call))
    return Json({"updatedExperimentIdentifiers": done, "errors": errors})


def delete_experiments(call: Call) -> Response:
    """Delete objects of the trash for good."""
    state = state_of(call)
    project_id = state.containers.project_id(text_of(call, "projectIdentifier"))
    done, errors = state.creation.delete(project_id, _identifiers(call))
    return Json({"updatedExperimentIdentifiers": done, "errors": errors})


def delete_all_experiments(call: Call) -> Response:
    """Empty the trash of a project."""
    state = state_of(call)
    project_id = state.containers.project_id(text_of(call, "projectIdentifier"))
    done, errors = state.creation.delete(project_id, state.creation.trash(project_id))
    return Json({"updatedExperimentIdentifiers": done, "errors": errors})


def ping(call: Call) -> Response:
    """Note that a client still has a run open. It does not count as a change of the run."""
    with state_of(call).containers.writing(text_of(call, "experimentId")) as (_, writing, run):
        writing.ping(run)
    return Response(status_code=200)


def execute_operations(call: Call) -> Response:
    """Apply operations to attributes; durable before the answer, which tells what was refused."""
    items = call.json(any_text=True)
    unwritable: list[str] = []
    if isinstance(items, list) and not call.is_text(items):
        unwritable = [_unwritable(item) for item in items if not call.is_text(item)]
        items = [item for item in items if call.is_text(item)]
    operations = parse_operations(items)
    state = state_of(call)
    containers, sessions = state.containers, state.sessions
    numbered = needs_numbers(operations)
    session = call.service.tokens.session(call.request.headers.get("authorization")) if numbered else ""
    digest = hashlib.sha256(call.body).hexdigest() if numbered else ""
    with containers.writing(text_of(call, "experimentId")) as (project, writing, run):
        answer, resent = remembered(writing, run, digest) if numbered else None, None
        if numbered:
            resent = Resent(writing.connection, sessions.get(run.uuid, session))
        application = Application(writing, run, project.objects, resent)
        if answer is not None:
            application.look_again(operations)
        else:
            application.apply(operations)
            answer = answer_of([*unwritable, *application.errors])
            if numbered:
                remember(writing, run, digest, answer)
    if resent is not None:
        sessions.put(run.uuid, session, resent.session)
    return Json(answer)


def _body(call: Call, container: Container) -> dict[str, Any]:
    workspace, _, name = container.project_id.partition("/")
    store = call.service.store
    stored = container.project_id in store.projects()
    return {
        "id": container.uuid,
        "organizationName": workspace,
        "organizationId": workspace,
        "projectId": store.project(container.project_id).uuid if stored else container.project_id,
        "projectName": name,
        "shortId": container.sys_id,
        "name": container.sys_id,
        "trashed": container.trashed,
        "type": TYPES[container.scope],
    }


def _unwritable(item: Any) -> str:
    path = item.get("path") if isinstance(item, dict) else None
    return f"An operation on {path!a} was left out: its text holds half of a character (a lone surrogate)."


def _identifiers(call: Call) -> list[str]:
    found = call.json()
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise BadRequestError("A list of identifiers is expected.")
    return found

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bravado.client import SwaggerClient

from neptune_assets.server.neptune2.swagger import ARTIFACTS, BACKEND, DEFINITIONS, LEADERBOARD, OPERATIONS, document

# Calls of the management module about members, invitations and quotas, and of notebooks and the client before 1.0:
# this server has one user and no notebooks.
NOT_SERVED = {
    "addProjectMember",
    "addProjectServiceAccount",
    "createCheckpoint",
    "createEmptyCheckpoint",
    "createNotebook",
    "createOrganizationInvitations",
    "deleteProjectMember",
    "deleteProjectServiceAccount",
    "getFloatSeriesValuesCSV",
    "getLeaderboard",
    "listCheckpoints",
    "listNotebooks",
    "listOrganizationMembers",
    "listProjectMembers",
    "listProjectServiceAccounts",
    "listServiceAccounts",
    "workspaceStatus",
}


def client_calls() -> set[str]:
    import neptune

    text = "".join(path.read_text(encoding="utf-8") for path in Path(neptune.__file__).parent.rglob("*.py"))
    called = set(re.findall(r"client\.api\.([a-zA-Z]+)", text))
    uploads = set(re.findall(r'"(file(?:Atom|SetFile)(?:Multipart)?Upload[A-Za-z]*)"', text))
    assert len(uploads) == 8
    return called | uploads


@pytest.mark.parametrize("service", [BACKEND, LEADERBOARD, ARTIFACTS])
def test_bravado_makes_a_method_of_every_call(service: str) -> None:
    client = SwaggerClient.from_spec(
        document(service), origin_url="http://127.0.0.1:1/swagger.json", config={"validate_swagger_spec": True}
    )
    for operation in OPERATIONS:
        if operation.service == service:
            assert getattr(client.api, operation.name).operation.path_name == operation.path


def test_every_call_that_the_client_makes_is_described() -> None:
    assert client_calls() - {operation.name for operation in OPERATIONS} == NOT_SERVED


def test_replies_are_models_with_declared_fields_only() -> None:
    client = SwaggerClient.from_spec(document(LEADERBOARD), origin_url="http://127.0.0.1:1/swagger.json")
    point = client.get_model("FloatPoint")._from_dict({"step": 1, "value": 2, "timestampMillis": 3})
    assert point.value == 2
    assert client.get_model("Attribute")._from_dict({"name": "a"}).floatProperties is None


def test_names_and_addresses_are_used_once() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    assert len({(operation.method, operation.path) for operation in OPERATIONS}) == len(OPERATIONS)


def test_every_definition_that_is_named_is_there() -> None:
    named = {word.strip("[]") for operation in OPERATIONS for word in operation.reply.split()} - {"bytes"}
    assert named <= set(DEFINITIONS)


def test_there_is_no_fourth_document() -> None:
    with pytest.raises(KeyError):
        document("frontend")

from __future__ import annotations

import base64
import json
import os

import pytest

from neptune_assets.errors import SettingsError
from neptune_assets.settings import Filters
from neptune_assets.sources.live import allow_transport, read_token
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets_tests.sources.neptune2.stub import Stub, token_for


def source(**settings: object) -> Neptune2:
    return Neptune2(Neptune2Source.model_validate(settings), Filters())


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_the_off_switch_is_obeyed_without_any_call(stub: Stub, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DISABLE_NEPTUNE_LOGGING", value)
    for ask in (
        lambda made: made.projects(),
        lambda made: made.runs("ws/project"),
        lambda made: list(made.read("ws/project", ["P-1"])),
    ):
        with pytest.raises(SettingsError, match="DISABLE_NEPTUNE_LOGGING"):
            ask(source())
    assert not stub.requests


def test_the_off_switch_set_to_false_is_off(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_NEPTUNE_LOGGING", "false")
    assert source().projects() == ["ws/project"]


@pytest.mark.parametrize(
    "token",
    [
        "no base64!",
        base64.b64encode(b"no json").decode(),
        base64.b64encode(b"[1]").decode(),
        base64.b64encode(json.dumps({"api_key": "k"}).encode()).decode(),
    ],
)
def test_a_token_that_is_none_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("MY_TOKEN", token)
    with pytest.raises(SettingsError, match="MY_TOKEN") as caught:
        source(api_token_env="MY_TOKEN").projects()
    assert token not in str(caught.value)


def test_a_missing_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    with pytest.raises(SettingsError, match="NEPTUNE_API_TOKEN"):
        source().projects()


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:8020", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://neptune.example.com", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1.example.com", False),
    ],
)
def test_http_is_for_this_machine_unless_settings_say_otherwise(
    monkeypatch: pytest.MonkeyPatch, url: str, allowed: bool
) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "")  # so that it is put back
    monkeypatch.delenv("OAUTHLIB_INSECURE_TRANSPORT")
    monkeypatch.setenv("NEPTUNE_API_TOKEN", token_for(url))
    token = read_token(Neptune2Source())
    if not allowed:
        with pytest.raises(SettingsError, match="unencrypted"):
            allow_transport(token, allow_http=False)
        assert "OAUTHLIB_INSECURE_TRANSPORT" not in os.environ
    allow_transport(token, allow_http=not allowed)
    assert "OAUTHLIB_INSECURE_TRANSPORT" in os.environ


@pytest.mark.parametrize("url", ["https://neptune.example.com", "neptune.example.com"])
def test_https_needs_no_allowance_and_the_token_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "")
    monkeypatch.delenv("OAUTHLIB_INSECURE_TRANSPORT")
    monkeypatch.setenv("NEPTUNE_API_TOKEN", token_for(url))
    token = read_token(Neptune2Source())
    allow_transport(token, allow_http=False)
    assert "OAUTHLIB_INSECURE_TRANSPORT" not in os.environ
    assert token.text not in repr(token)

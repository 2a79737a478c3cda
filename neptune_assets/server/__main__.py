"""Commands of the server: ``serve`` it, print the ``token`` that clients need, make a ``certificate`` for https."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from neptune_assets.cli import run
from neptune_assets.errors import SettingsError
from neptune_assets.plugins import check_installed
from neptune_assets.server.settings import ServerSettings


def _option(name: str, field: FieldInfo) -> click.Option:
    """One option for each setting; what is not given keeps its default, and pydantic checks the value."""
    option = f"--{name.replace('_', '-')}"
    text = f"{field.description}" + (
        f" (default: {field.default})" if field.default not in {None, PydanticUndefined} else ""
    )
    if isinstance(field.default, bool):
        return click.Option([f"{option}/--no-{name.replace('_', '-')}"], default=None, help=text)
    return click.Option([option], required=field.is_required(), help=text)


def _settings(options: Mapping[str, Any]) -> ServerSettings:
    given = {name: value for name, value in options.items() if value is not None}
    if "lake" in given:
        given["lake"] = {"root": given["lake"]}
    try:
        return ServerSettings.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"--{str(item['loc'][0]).replace('_', '-')}: {item['msg']}" for item in error.errors())
        raise SettingsError(wrong, hint="See `serve --help`.") from error


@click.command()
def serve(**options: Any) -> int:
    """Serve Neptune's protocols over a store and a lake."""
    _check_installed()
    import uvicorn

    from neptune_assets.server.app import build_app
    from neptune_assets.server.connections import uvicorn_config
    from neptune_assets.server.service import Service

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = _settings(options)
    _check_reach(settings)
    # Whatever is made from here on is for its owner only.
    os.umask(0o077)
    server = uvicorn.Server(uvicorn_config(build_app(Service(settings)), settings, timeout_graceful_shutdown=30))
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server ends itself on these; afterwards it raises them again for whoever listened before, which is us.
        signal.signal(number, lambda *_: None)
    server.run()
    return 0 if server.started else 1


serve.params.extend(_option(name, field) for name, field in ServerSettings.model_fields.items())
# The name that `--gc-grace-days` had until 0.1.
serve.params.append(click.Option(["--unused-days"], hidden=True))


@click.command()
@click.option("--store", type=click.Path(path_type=Path), required=True, help="directory of the server's store")
@click.option("--url", default="http://127.0.0.1:8020", help="how clients reach the server")
@click.option("--api-key-env", help="environment variable with the API key, if the server has one")
def token(store: Path, url: str, api_key_env: str | None) -> int:
    """Print what NEPTUNE_API_TOKEN must be set to."""
    _check_installed()
    from neptune_assets.server.tokens import api_token, load_secrets

    known = load_secrets(store, api_key_env)
    print(api_token(known.api_key, url.rstrip("/")))
    return 0


@click.command()
@click.option("--certfile", type=click.Path(path_type=Path), required=True, help="where to write the certificate")
@click.option("--keyfile", type=click.Path(path_type=Path), required=True, help="where to write its private key")
@click.option("--name", multiple=True, help="host name or address it is for; may be repeated")
@click.option("--days", type=int, default=825, help="how long it is good for")
def certificate(certfile: Path, keyfile: Path, name: tuple[str, ...], days: int) -> int:
    """Make a self-signed certificate for https."""
    _check_installed()
    from neptune_assets.server.certificate import self_signed

    names = [*name] or ["localhost", "127.0.0.1", "::1"]
    self_signed(certfile, keyfile, names, days)
    print(f"Wrote {certfile} and {keyfile}, for {', '.join(names)}.")
    return 0


def _check_installed() -> None:
    needed = ("starlette", "uvicorn", "lark", "pyjwt", "cryptography", "neptune-api")
    check_installed("The server", needed, "neptune-assets[server]")


def _check_reach(settings: ServerSettings) -> None:
    """Warn if other machines can reach the server. Raises SettingsError if they would send tokens in the clear."""
    if settings.host == "localhost" or _loopback(settings.host):
        return
    if settings.certfile is None and not settings.insecure:
        raise SettingsError(
            f"Other machines can reach {settings.host}, and without https anybody between can read tokens and data.",
            hint="Set --certfile and --keyfile (`certificate` makes them), or --insecure if a proxy speaks https.",
        )
    logging.getLogger(__name__).warning(
        "The server listens on %s, where other machines can reach it%s.",
        settings.host,
        ", WITHOUT https: tokens and data can be read on the way" if settings.certfile is None else "",
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.group(help=__doc__)
def commands() -> None:
    """Commands of the server."""


for _command in (serve, token, certificate):
    commands.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    return run(commands, arguments, "python -m neptune_assets.server")


if __name__ == "__main__":
    sys.exit(main())

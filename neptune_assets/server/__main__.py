"""Commands of the server: ``serve`` it, print the ``token`` that clients need, make a ``certificate`` for https."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from neptune_assets.errors import NeptuneAssetsError, SettingsError
from neptune_assets.server.settings import ServerSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except NeptuneAssetsError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m neptune_assets.server", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="serve | token | certificate")

    serve = commands.add_parser("serve", help="serve Neptune's protocols over a store and a lake")
    serve.add_argument("--lake", help="Root of the lake to serve beside the store, a directory or URL.")
    for name, field in ServerSettings.model_fields.items():
        if name != "lake":
            _add_setting(serve, name, field)
    serve.set_defaults(command=_serve)

    token = commands.add_parser("token", help="print what NEPTUNE_API_TOKEN must be set to")
    token.add_argument("--store", type=Path, required=True, help="directory of the server's store")
    token.add_argument("--url", default="http://127.0.0.1:8020", help="how clients reach the server")
    token.add_argument("--api-key-env", help="environment variable with the API key, if the server has one")
    token.set_defaults(command=_token)

    certificate = commands.add_parser("certificate", help="make a self-signed certificate for https")
    certificate.add_argument("--certfile", type=Path, required=True, help="where to write the certificate")
    certificate.add_argument("--keyfile", type=Path, required=True, help="where to write its private key")
    certificate.add_argument("--name", action="append", help="host name or address it is for; may be repeated")
    certificate.add_argument("--days", type=int, default=825, help="how long it is good for")
    certificate.set_defaults(command=_certificate)
    return parser


def _add_setting(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """One option for each setting; what is not given keeps its default, and pydantic checks the value."""
    option = f"--{name.replace('_', '-')}"
    text = f"{field.description}" + (
        f" (default: {field.default})" if field.default not in {None, PydanticUndefined} else ""
    )
    text = text.replace("%", "%%")
    if isinstance(field.default, bool):
        parser.add_argument(option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        parser.add_argument(option, required=field.is_required(), default=argparse.SUPPRESS, help=text)


def _settings(options: argparse.Namespace) -> ServerSettings:
    given = {name: value for name, value in vars(options).items() if name in ServerSettings.model_fields}
    given["lake"] = None if options.lake is None else {"root": options.lake}
    try:
        return ServerSettings.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"--{str(item['loc'][0]).replace('_', '-')}: {item['msg']}" for item in error.errors())
        raise SettingsError(wrong, hint="See `serve --help`.") from error


def _serve(options: argparse.Namespace) -> int:
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


def _token(options: argparse.Namespace) -> int:
    from neptune_assets.server.tokens import api_token, load_secrets

    known = load_secrets(options.store, options.api_key_env)
    print(api_token(known.api_key, options.url.rstrip("/")))
    return 0


def _certificate(options: argparse.Namespace) -> int:
    from neptune_assets.server.certificate import self_signed

    names = options.name or ["localhost", "127.0.0.1", "::1"]
    self_signed(options.certfile, options.keyfile, names, options.days)
    print(f"Wrote {options.certfile} and {options.keyfile}, for {', '.join(names)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

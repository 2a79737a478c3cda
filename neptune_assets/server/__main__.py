"""Commands of the server: ``serve`` it, print the ``token`` that clients need, make a ``certificate`` for https."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.server.settings import ServerSettings
from neptune_assets.settings import LakeSettings


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
    serve.add_argument("--store", type=Path, required=True, help="directory of what clients log")
    serve.add_argument("--lake", help="root of the lake to serve beside it, a directory or URL")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    serve.add_argument("--port", type=int, default=8020, help="port to listen on; 0 lets the system choose")
    serve.add_argument("--public-url", help="how clients reach the server, if it is behind a proxy")
    serve.add_argument("--certfile", type=Path, help="certificate, for https")
    serve.add_argument("--keyfile", type=Path, help="private key of the certificate")
    serve.add_argument("--no-create-projects", action="store_true", help="refuse runs of projects that are not there")
    serve.add_argument("--api-key-env", help="environment variable with the API key, instead of the store's own")
    serve.add_argument("--access-log", type=Path, help="file for the access log (default: standard output)")
    serve.add_argument("--scratch", type=Path, help="directory for temporary files of reading")
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


def _serve(options: argparse.Namespace) -> int:
    import uvicorn

    from neptune_assets.server.app import build_app
    from neptune_assets.server.service import Service

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = ServerSettings(
        store=options.store,
        lake=None if options.lake is None else LakeSettings(root=options.lake),
        host=options.host,
        port=options.port,
        public_url=options.public_url,
        certfile=options.certfile,
        keyfile=options.keyfile,
        create_projects=not options.no_create_projects,
        api_key_env=options.api_key_env,
        access_log=options.access_log,
        scratch=options.scratch,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(Service(settings)),
            host=settings.host,
            port=settings.port,
            ssl_certfile=settings.certfile,
            ssl_keyfile=settings.keyfile,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=30,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server ends itself on these; afterwards it raises them again for whoever listened before, which is us.
        signal.signal(number, lambda *_: None)
    server.run()
    return 0 if server.started else 1


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

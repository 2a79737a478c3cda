"""The command ``neptune-assets``: its sub-commands, and what its exit status means.

0: all is well. 1: something is wrong with what was looked at, or an error. 2: wrong usage. 10: there is no such lake,
project, export or recording. 11: somebody else is writing. 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from neptune_assets.errors import LakeBusyError, NeptuneAssetsError, UnknownProjectError

WRONG: Final = 1
USAGE: Final = 2
UNKNOWN: Final = 10
BUSY: Final = 11
INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "audit": ("neptune_assets.audit", "Say what an export or a folder of recordings holds, and what is wrong with it."),
    "plan": ("neptune_assets.plan", "Say what loads of a migration would do, with nothing written."),
    "verify": ("neptune_assets.verify", "Read a lake again and compare every byte with what was recorded."),
    "serve": ("neptune_assets.server.__main__", "Serve Neptune's protocols over a store and a lake."),
    "token": ("neptune_assets.server.__main__", "Print what NEPTUNE_API_TOKEN must be set to."),
    "certificate": ("neptune_assets.server.__main__", "Make a self-signed certificate for https."),
}


class _Commands(click.Group):
    """Imports a command when it is called: each needs libraries that others do not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neptune_assets")
def neptune_assets() -> None:
    """Bring Neptune.ai runs home: look at what you have, plan loads, verify lakes, serve them."""


def run(command: click.Command, arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """Run a command on ``arguments`` (those of the process if None) and return its exit status; errors are printed."""
    try:
        given = None if arguments is None else list(arguments)
        return command.main(given, prog_name=name, standalone_mode=False) or 0
    except click.Abort:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except LakeBusyError as error:
        print(error, file=sys.stderr)
        return BUSY
    except UnknownProjectError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    except (NeptuneAssetsError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG


def main() -> int:
    """Run ``neptune-assets``."""
    return run(neptune_assets, name="neptune-assets")

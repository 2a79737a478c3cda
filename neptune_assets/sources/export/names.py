"""Names in an export: the exporter's cleaned names, part files, and original names recovered from cleaned ones.

A cleaned name ends in 64 bits of hash over the original, so a guessed original can be proved right or wrong.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_PART: Final = re.compile(
    r"(?P<prefix>.+)_part_(?P<number>0|[1-9][0-9]{0,8})\.parquet(?P<unfinished>\.tmp)?", re.DOTALL
)
_HASH_LENGTH: Final = 17
"""A dash and sixteen hexadecimal digits."""


def safe_name(original: str) -> str:
    """Return the exporter's name for ``original``: cleaned for file systems, with a hash that keeps it unique.

    Unlike the lake's, it is never cut: what the exporter wrote is looked for under the name it gave.
    """
    cleaned = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in original)
    return f"{cleaned}-{hashlib.blake2b(original.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class PartName:
    """A part's file name taken apart: which run (cleaned), which number, and whether writing never finished."""

    prefix: str
    number: int
    unfinished: bool


def parse_part(file_name: str) -> PartName | None:
    """Take a part's file name apart from the right, so that run ids may hold ``_part_0``; None for other names."""
    match = _PART.fullmatch(file_name)
    if match is None:
        return None
    return PartName(match["prefix"], int(match["number"]), match["unfinished"] is not None)


def recover_run_id(prefix: str, candidates: Iterable[str] = ()) -> str | None:
    """Return the run id that the exporter cleaned to ``prefix``, if it is among the candidates or cleaning kept it."""
    return _proved(prefix, (*candidates, prefix[:-_HASH_LENGTH]))


def recover_project_id(prefix: str, candidates: Iterable[str] = ()) -> str | None:
    """Return the ``workspace/project`` that the exporter cleaned to ``prefix``, if the hash proves a guess right."""
    cleaned = prefix[:-_HASH_LENGTH]
    guesses = [f"{cleaned[:at]}/{cleaned[at + 1 :]}" for at, letter in enumerate(cleaned) if letter == "_"]
    return _proved(prefix, (*candidates, *guesses))


def _proved(prefix: str, guesses: Iterable[str]) -> str | None:
    return next((guess for guess in guesses if guess and safe_name(guess) == prefix), None)

"""Names in W&B: injective, as close to Neptune's as W&B allows, with a digest only where names meet or are too long."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Final, Literal, TypeVar

Naming = Literal["default", "neptune-exporter"]
Key = TypeVar("Key", bound=Hashable)

MAX_NAME: Final = 128
"""Characters of project names, run names and groups."""
MAX_KEY: Final = 512
"""Characters of a key of the history, as a bound of ours: W&B states none."""
MAX_TAG: Final = 64
RESERVED_KEYS: Final = frozenset({"", "_step", "_timestamp", "_runtime", "_wandb", "neptune_step", "neptune_assets"})

_NOT_IN_PROJECTS: Final = re.compile(r"[/\\#?%:\x00-\x1f\x7f]")
_NOT_IN_EXPORTER_PROJECTS: Final = re.compile(r"[^a-zA-Z0-9_-]")
_NOT_IN_EXPORTER_KEYS: Final = re.compile(r"[^a-zA-Z0-9_]")


def digest_of(text: str, length: int = 8) -> str:
    """Return the first hex digits of a hash of the text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()[:length]


def shorten(text: str, limit: int, *, source: str | None = None, always: bool = False) -> str:
    """Return the text if it is short enough, else its beginning and a digest of ``source`` (the text itself)."""
    if len(text) <= limit and not always:
        return text
    digest = digest_of(text if source is None else source)
    return f"{text[: limit - len(digest) - 1]}-{digest}"


def run_key(project_id: str, run_id: str) -> str:
    """Return the W&B run id: the same for the same Neptune run, for ever, so that syncing again doubles nothing."""
    return "np" + digest_of(f"{project_id}\n{run_id}", 20)


def project_name(project_id: str, others: Iterable[str], naming: Naming, prefix: str) -> str:
    """Return the W&B project for a Neptune project. ``others`` are the projects it must not meet."""
    if naming == "neptune-exporter":

        def clean(key: str) -> str:
            return _NOT_IN_EXPORTER_PROJECTS.sub("_", f"{prefix}_{key}" if prefix else key)
    else:

        def clean(key: str) -> str:
            return _NOT_IN_PROJECTS.sub("-", prefix + key.partition("/")[2])

    name = clean(project_id)
    meets = any(other != project_id and clean(other).casefold() == name.casefold() for other in others)
    return shorten(name, MAX_NAME, source=project_id, always=meets)


def clean_key(naming: Naming) -> Callable[[str], str]:
    """Return what makes a key of the history out of an attribute's path, before names that meet are told apart."""
    if naming == "default":
        return str

    def clean(path: str) -> str:
        key = _NOT_IN_EXPORTER_KEYS.sub("_", path)
        if not key:
            return "_attribute"
        return key if key[0].isalpha() or key[0] == "_" else f"_{key}"

    return clean


def distinct(
    wanted: Mapping[Key, tuple[str, str]],
    limit: int = MAX_KEY,
    reserved: Collection[str] = RESERVED_KEYS,
) -> dict[Key, str]:
    """Give every key a name of its own.

    ``wanted`` maps a key to (name it would like, text that its digest is made of). Names that meet, are reserved or
    are longer than ``limit`` characters get a digest; the outcome does not depend on the order.
    """
    counts = Counter(name for name, _ in wanted.values())
    plain = {key: name for key, (name, _) in wanted.items() if len(name) <= limit and name not in reserved}
    names = {key: name for key, name in plain.items() if counts[name] == 1}
    taken = {*names.values(), *reserved, *counts}
    for key, (name, source) in sorted(wanted.items(), key=lambda item: item[1]):
        if key in names:
            continue
        for length in (8, 16, 64):
            digest = digest_of(source, length)
            made = f"{name[: limit - length - 1]}-{digest}"
            if made not in taken:
                break
        names[key] = made
        taken.add(made)
    return names

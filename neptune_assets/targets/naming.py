"""Names that a target accepts, made so that no two attributes ever share one. Pure text, no I/O.

A name stays as it is where the target allows it. Otherwise it is cleaned, and a short digest of the original is added
only where two names collide or one is too long. The outcome does not depend on the order of attributes. Runs that were
loaded before keep their names: the recipes here never change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from hashlib import blake2b
from typing import Final, TypeVar

MAX_PATH: Final = 400
"""Characters of an artifact's path inside its run."""

MAX_COMPONENT: Final = 120
"""Bytes of one component of an artifact's path; file systems end at 255."""

_SIZES: Final = (4, 8, 16, 32)

_ILLEGAL_IN_FILES: Final = re.compile(r"[^\w.\- +=@,()]")

K = TypeVar("K", bound=Hashable)


def digest(text: str, size: int = 4) -> str:
    """Return a hex digest of ``size`` bytes."""
    return blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=size).hexdigest()


def shorten(name: str, of: str, limit: int, size: int = 4) -> str:
    """Return ``name`` with a digest of the original ``of`` at its end, at most ``limit`` characters long."""
    tail = f"-{digest(of, size)}"
    return name[: limit - len(tail)].rstrip("/ ") + tail


def distinct_keys(
    wanted: Mapping[K, str], clean: Callable[[str], str], *, limit: int, fold_case: bool = False
) -> dict[K, str]:
    """Return a key of at most ``limit`` characters for each item; no two are equal, with ``fold_case`` but for case.

    ``clean`` makes any text a legal key. An item whose own text is a legal key keeps it; those that collide with it get
    a digest.
    """
    fold = str.casefold if fold_case else str
    cleaned = {item: clean(path) for item, path in wanted.items()}
    result = {
        item: name if len(name) <= limit else shorten(name, wanted[item], limit) for item, name in cleaned.items()
    }
    counts = Counter(fold(name) for name in result.values())
    kept: set[str] = set()
    crowded = []
    for item, name in sorted(result.items(), key=lambda pair: (wanted[pair[0]] != pair[1], str(pair[0]))):
        if counts[fold(name)] == 1 or (wanted[item] == name and fold(name) not in kept):
            kept.add(fold(name))
        else:
            crowded.append(item)
    for item in crowded:
        tails = (shorten(result[item], repr(item), limit, size) for size in _SIZES)
        result[item] = _free(kept, fold, tails)
    return result


def colliding_keys(
    wanted: Mapping[K, str], clean: Callable[[str], str], *, fold_case: bool = False
) -> dict[str, list[K]]:
    """Return the keys that several items would have, and those items, which :func:`distinct_keys` disambiguates."""
    fold = str.casefold if fold_case else str
    return _groups({item: fold(clean(path)) for item, path in wanted.items()})


def colliding_paths(wanted: Mapping[K, str]) -> dict[str, list[K]]:
    """Return the artifact paths that several items would have, and those items."""
    return _groups({item: _clean_path(path).casefold() for item, path in wanted.items()})


def _groups(named: Mapping[K, str]) -> dict[str, list[K]]:
    groups: dict[str, list[K]] = {}
    for item, name in named.items():
        groups.setdefault(name, []).append(item)
    return {name: items for name, items in sorted(groups.items()) if len(items) > 1}


def distinct_paths(wanted: Mapping[K, str]) -> dict[K, str]:
    """Return a relative artifact path for each item, legal on every storage.

    No two are equal but for case, and none is the directory of another. Extensions stay at the end.
    """
    result = {item: _clean_path(path) for item, path in wanted.items()}
    leaves = Counter(path.casefold() for path in result.values())
    directories = {
        "/".join(parts[:depth]).casefold()
        for parts in (path.split("/") for path in result.values())
        for depth in range(1, len(parts))
    }
    kept = {path.casefold() for path in result.values() if leaves[path.casefold()] == 1} | directories
    for item, path in sorted(result.items(), key=lambda pair: str(pair[0])):
        if leaves[path.casefold()] > 1 or path.casefold() in directories:
            stem, extension = split_extension(path)
            tails = (f"{stem}-{digest(repr(item), size)}{extension}" for size in _SIZES)
            result[item] = _free(kept, str.casefold, tails)
    return result


def split_extension(path: str) -> tuple[str, str]:
    """Split a file's path into stem and extension with its dot; the extension is empty if there is none."""
    directory, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if dot and stem and re.fullmatch(r"[A-Za-z0-9]{1,16}", extension):
        return f"{directory}{slash}{stem}", f".{extension}"
    return path, ""


def _clean_path(path: str) -> str:
    parts = []
    for part in path.split("/"):
        name = _ILLEGAL_IN_FILES.sub("_", part)
        if name.strip(" .") == "" or name != name.strip(" ") or name.endswith("."):
            name = name.strip(" .") + "_"
        if len(name.encode()) > MAX_COMPONENT:
            stem, extension = split_extension(name)
            head = stem.encode()[: MAX_COMPONENT - 26].decode(errors="ignore")
            name = f"{head}-{digest(part)}{extension}"
        parts.append(name)
    whole = "/".join(parts)
    if len(whole) > MAX_PATH:
        stem, extension = split_extension(whole)
        whole = f"{stem[: MAX_PATH - 26].rstrip('/. ')}-{digest(path)}{extension}"
    return whole


def _free(kept: set[str], fold: Callable[[str], str], candidates: Iterable[str]) -> str:
    """Return the first name that nobody has, and keep it."""
    name = next(name for name in candidates if fold(name) not in kept)
    kept.add(fold(name))
    return name

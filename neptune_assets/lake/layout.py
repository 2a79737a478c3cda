"""Every path of the lake, and how names become path components.

A component is made from any text by :func:`safe_name`; the original text is only in the columns and manifests. File
contents are addressed by their hash, so a replaced file never overwrites the old one. Paths use forward slashes on
every kind of storage. Nothing here touches a disk.

On object stores, whose requests may be carried out long after their sender lost the lease, names of parts and files
also hold the generation that wrote them: no request of another writer, and no deletion, ever names them again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from neptune_assets.schema import MICROSTEPS, Scope

MAX_COMPONENT: Final = 200
"""Bytes of UTF-8 that a component made by :func:`safe_name` may have; longer ones are cut, the digest stays."""

MANIFEST: Final = ".manifest"
STAGING: Final = ".staging"

_GENERATION: Final = r"(?P<sequence>[0-9]{10})-[0-9a-f]{16}\.[0-9]+"
"""A generation on an object store: commits so far, a random token, and the number of the run in its commit."""
_PART: Final = re.compile(
    rf"(?s)(?P<prefix>.+?)(?:\.(?P<generation>{_GENERATION}))?_part_(?P<number>0|[1-9][0-9]*)\.parquet"
)
_FILE: Final = re.compile(rf"(?s)(?P<attribute>[^/]+/[^/]+/)(?:{_GENERATION}/)?(?P<content>[^/]+)(?P<member>/.*)?")
_EXTENSION: Final = re.compile(r"[A-Za-z0-9]{1,16}")
_HOSTILE: Final = re.compile(r'[\x00-\x1f\x7f\\<>:"|?*]')


@lru_cache(maxsize=4096)
def safe_name(text: str) -> str:
    """Return S(text): cleaned text, a dash, and 16 hex digits of the original's hash.

    The same as neptune-exporter's names, except that the cleaned text is cut at a character boundary where the whole
    would be longer than :data:`MAX_COMPONENT` bytes. Text with lone surrogates, which UTF-8 has no bytes for, works.
    """
    raw = text.encode("utf-8", errors="surrogatepass")
    digest = blake2b(raw, digest_size=8).hexdigest()
    cleaned = "".join(char if char.isalnum() or char in "_-" else "_" for char in text)
    head = cleaned.encode("utf-8")[: MAX_COMPONENT - len(digest) - 1].decode("utf-8", errors="ignore")
    return f"{head}-{digest}"


def part_name(run_id: str, number: int, generation: str | None = None) -> str:
    """Return the file name of one part of a run, with its generation if that is given."""
    # No name made by safe_name has a dot.
    return f"{safe_name(run_id)}{'.' + generation if generation else ''}_part_{number}.parquet"


def parse_part_name(name: str) -> tuple[str, int] | None:
    """Split a part's file name into S(run id) and number; None for any other file. Read from the right."""
    match = _PART.fullmatch(name)
    return (match["prefix"], int(match["number"])) if match else None


def part_sequence(name: str) -> int:
    """Return how many commits there were when a part was begun, -1 if its name does not say; grows for each run."""
    match = _PART.fullmatch(name)
    return int(match["sequence"]) if match and match["sequence"] else -1


def extension_of(name: str) -> str:
    """Return the extension of a file name without its dot, lower or upper case as it is; empty if it has none."""
    stem, dot, extension = name.rpartition(".")
    return extension if dot and stem and _EXTENSION.fullmatch(extension) else ""


def file_path(run_id: str, attribute_path: str, sha256: str, extension: str, *, step: int | None = None) -> str:
    """Return where one file is stored, relative to the project's files directory.

    ``step`` in micro-steps puts the file in a series; ``extension`` is without a dot and may be empty.
    """
    name = sha256[:16] + (f".{extension}" if extension else "")
    if step is not None:
        name = f"step_{format_step(step)}-{name}"
    return f"{safe_name(run_id)}/{safe_name(attribute_path)}/{name}"


def file_set_path(run_id: str, attribute_path: str, digest: str) -> str:
    """Return the directory of a file set with this content digest, relative to the project's files directory."""
    return f"{safe_name(run_id)}/{safe_name(attribute_path)}/files-{digest[:16]}"


def unique_file_path(path: str, generation: str) -> str:
    """Return the path of a file or file set with the generation that writes it, which no other ever has."""
    run, attribute, content = path.split("/", 2)
    return f"{run}/{attribute}/{generation}/{content}"


def stored_contents(paths: Iterable[str]) -> dict[str, str]:
    """Map what :func:`file_path` and :func:`file_set_path` return to where it is stored, given the paths of files."""
    found = {}
    for path in paths:
        if match := _FILE.fullmatch(path):
            found[match["attribute"] + match["content"]] = path.removesuffix(match["member"] or "")
    return found


def member_paths(members: Iterable[str]) -> dict[str, str]:
    """Map the members of a file set to relative paths that are safe to write and do not collide.

    Ordinary names stay as they are. A component that is empty, ``.``, ``..``, too long, or holds characters that
    some file system refuses is encoded by :func:`safe_name`; so is the last component of a member that would be the
    directory of another, and of members that differ only in case.
    """
    plain = {member: [_component(part) for part in member.split("/")] for member in sorted(set(members))}
    leaves = Counter("/".join(parts).casefold() for parts in plain.values())
    directories = {"/".join(parts[:depth]).casefold() for parts in plain.values() for depth in range(1, len(parts))}
    result: dict[str, str] = {}
    for member, parts in plain.items():
        key = "/".join(parts).casefold()
        if leaves[key] > 1 or key in directories:
            # With a slash at its end, the text is that of no component, so its name is nobody else's.
            parts[-1] = safe_name(f"{member}/")
        result[member] = "/".join(parts)
    return result


def _component(part: str) -> str:
    if part in {"", ".", ".."} or _HOSTILE.search(part) or part != part.strip() or part.endswith("."):
        return safe_name(part)
    try:
        too_long = len(part.encode("utf-8")) > MAX_COMPONENT
    except UnicodeEncodeError:
        return safe_name(part)
    return safe_name(part) if too_long else part


def format_step(microsteps: int) -> str:
    """Return a step as a decimal with six places, exactly."""
    sign = "-" if microsteps < 0 else ""
    whole, fraction = divmod(abs(microsteps), MICROSTEPS)
    return f"{sign}{whole}.{fraction:06d}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of a lake below ``root``; every method returns a path that begins with it."""

    root: str

    def base(self, scope: Scope = Scope.RUNS) -> str:
        """Directory that holds one directory for each project: ``data``, or ``model_data`` for the model registry."""
        return f"{self.root}/{'data' if scope is Scope.RUNS else 'model_data'}"

    def project(self, project_id: str, scope: Scope = Scope.RUNS) -> str:
        """Directory of a project's parts."""
        return self._in_scope(f"{self.base(scope)}/{safe_name(project_id)}", scope)

    def manifest(self, project_id: str, scope: Scope = Scope.RUNS) -> str:
        """Directory of a project's manifest files and of its lock."""
        return f"{self.project(project_id, scope)}/{MANIFEST}"

    def staging(self, project_id: str, scope: Scope = Scope.RUNS) -> str:
        """Directory under which each commit, of one run or several, writes its parts first."""
        return f"{self.project(project_id, scope)}/{STAGING}"

    def part(self, project_id: str, name: str, scope: Scope = Scope.RUNS) -> str:
        """Final place of a part."""
        return f"{self.project(project_id, scope)}/{name}"

    def shown(self, project_id: str) -> str:
        """Directory, beside the projects, of the parts that views read while the final ones of a project are moved."""
        return f"{self.base()}/.{safe_name(project_id)}"

    def staged_part(self, project_id: str, generation: str, name: str, scope: Scope = Scope.RUNS) -> str:
        """Place of a part before its commit is finished."""
        return f"{self.staging(project_id, scope)}/{staging_group(generation)}/{name}"

    def files(self, project_id: str, scope: Scope = Scope.RUNS) -> str:
        """Directory that ``file_value.path`` of a project is relative to."""
        return f"{self.root}/{'files' if scope is Scope.RUNS else 'model_files'}/{safe_name(project_id)}"

    def files_staging(self, project_id: str, scope: Scope = Scope.RUNS) -> str:
        """Directory for files being written, on the same file system as where they end up."""
        return f"{self.files(project_id, scope)}/{STAGING}-{scope.value}"

    def summary(self, table: str, project_id: str) -> str:
        """Parquet file of one summary table of one project."""
        return f"{self.root}/summary/{table}/{safe_name(project_id)}.parquet"

    def statistics(self, project_id: str) -> str:
        """Directory with what the writer found out about a project's series, for the summary."""
        return f"{self.root}/statistics/{safe_name(project_id)}"

    def ledger(self, target: str, project_id: str, extension: str) -> str:
        """File in which a target keeps its receipts of one project; ``extension`` without a dot."""
        return f"{self.root}/targets/{target}/{safe_name(project_id)}.{extension}"

    def database(self) -> str:
        """The DuckDB database that people open."""
        return f"{self.root}/neptune.duckdb"

    @staticmethod
    def _in_scope(path: str, scope: Scope) -> str:
        return path if scope is Scope.RUNS else f"{path}/{scope.value}"


def staging_group(generation: str) -> str:
    """Return the directory in staging that a generation shares with the runs committed together with it.

    A generation is the name of that directory and, after a dot, a number of its own.
    """
    return generation.partition(".")[0]


def run_prefixes(run_ids: Iterable[str]) -> Mapping[str, str]:
    """Map S(run id) back to the run id."""
    return {safe_name(run_id): run_id for run_id in run_ids}

"""Files of a run on their way to W&B: out of the lake, checked, and into their places as media, tables or run files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final

import pyarrow as pa

from neptune_assets.errors import FileGoneError, TargetError
from neptune_assets.lake.layout import extension_of, format_step, member_paths
from neptune_assets.schema import AttributeType
from neptune_assets.targets.columns import series_values
from neptune_assets.targets.protocol import RowCounts
from neptune_assets.targets.rules import wanted_name
from neptune_assets.targets.wandb import codec
from neptune_assets.targets.wandb.codec import json_text, seconds_text, step_text
from neptune_assets.targets.wandb.history import EventSorter
from neptune_assets.targets.wandb.mapping import Layout, digest_of

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun


@dataclass(slots=True)
class Account(RowCounts):
    """What became of every row, and of the staged run."""

    history_rows: int = 0
    system_rows: int = 0
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name and digest of each artifact."""
    version: dict[str, str] = field(default_factory=dict)
    """Collection and digest of the model version, if it is one."""
    bytes: int = 0


MEDIA: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        **dict.fromkeys(("png", "jpg", "jpeg", "bmp", "gif", "webp"), ("image-file", "images")),
        **dict.fromkeys(("html", "htm"), ("html-file", "html")),
        **dict.fromkeys(("wav", "mp3", "ogg", "flac", "m4a"), ("audio-file", "audio")),
        **dict.fromkeys(("mp4", "webm"), ("video-file", "videos")),
    }
)
"""Extension -> W&B's name of the media type, and its directory."""
FOLDER: Final = "neptune"
"""Directory, below the run's files, of files that are not media."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file in the run's ``files`` directory. ``step`` in micro-steps; ``member`` is its path inside a file set."""

    attribute_path: str
    attribute_type: str
    path: str
    size: int
    sha256: str
    step: int | None = None
    member: str | None = None


@dataclass(slots=True)
class Copy:
    """Bytes that were copied and have no final name yet."""

    path: Path
    size: int
    sha256: str
    extension: str


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_in(source: BinaryIO, target: Path, name: str) -> Copy:
    """Copy a stream to ``target``; the extension is that of ``name``, or guessed from the content if it has none."""
    hashed, size, head = hashlib.sha256(), 0, b""
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            head = head or chunk[:8192]
            hashed.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return Copy(target, size, hashed.hexdigest(), extension_of(name.rpartition("/")[2]) or _guess(head))


def _guess(head: bytes) -> str:
    import filetype

    kind = filetype.guess(head) if head else None
    return str(kind.extension) if kind else ""


class FileStage:
    """Names and places files below a run's ``files`` directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._waiting: dict[str, tuple[Copy, StagedFile]] = {}
        self._count = 0
        self.staged: list[StagedFile] = []
        self.media_paths: list[str] = []

    def copy(self, source: BinaryIO, name: str) -> Copy:
        """Take a file in; :meth:`media` or :meth:`keep` gives it a name."""
        self._count += 1
        return copy_in(source, self._directory / f".incoming-{self._count}", name)

    def media(self, copy: Copy, key: str, staged: StagedFile) -> dict[str, Any] | None:
        """Place a file as media and return its JSON for the history; None if W&B has no media of its kind."""
        kind = MEDIA.get(copy.extension.lower())
        if kind is None:
            return None
        name, folder = kind
        facts: dict[str, Any] = {"_type": name, "sha256": copy.sha256, "size": copy.size}
        if name == "image-file":
            size = _picture_size(copy.path)
            if size is None:
                return None
            facts["format"] = copy.extension.lower()
            facts["width"], facts["height"] = size
        facts["path"] = self.place_media(copy, key, folder, copy.extension, staged)
        return facts

    def place_media(self, copy: Copy, key: str, folder: str, extension: str, staged: StagedFile) -> str:
        """Move a file to ``media/<folder>`` under a name made of key, step and hash; return its path."""
        stem = _UNSAFE.sub("_", key)[:80].strip(".") or "_"
        step = "" if staged.step is None else f"_{staged.step}"
        path = f"media/{folder}/{stem}_{digest_of(key)}{step}_{copy.sha256[:20]}.{extension}"
        self._move(copy, path)
        self.media_paths.append(path)
        self._done(copy, staged, path)
        return path

    def keep(self, copy: Copy, name: str, staged: StagedFile) -> None:
        """Place a file as a run file called ``name``, or nearly so; it gets its extension if the name has none."""
        if copy.extension and extension_of(name.rpartition("/")[2]).lower() != copy.extension.lower():
            name = f"{name}.{copy.extension}"
        if name in self._waiting:
            identity = f"{staged.attribute_path}\n{staged.attribute_type}\n{staged.step}\n{staged.member}"
            name = f"{name}-{digest_of(identity, 16)}"
        self._waiting[name] = (copy, staged)

    def finish(self) -> list[str]:
        """Give the run files their names, told apart where they would meet; return their paths."""
        paths = []
        for name, safe in member_paths(self._waiting).items():
            copy, staged = self._waiting[name]
            path = f"{FOLDER}/{safe}"
            self._move(copy, path)
            self._done(copy, staged, path)
            paths.append(path)
        self._waiting = {}
        return sorted(paths)

    def _move(self, copy: Copy, path: str) -> None:
        target = self._directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        copy.path.replace(target)

    def _done(self, copy: Copy, staged: StagedFile, path: str) -> None:
        self.staged.append(
            StagedFile(
                staged.attribute_path,
                staged.attribute_type,
                path,
                copy.size,
                copy.sha256,
                staged.step,
                staged.member,
            )
        )


def _picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels; None if it is not a picture that can be shown."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
    return int(width), int(height)


MAX_BINS: Final = 512
TABLE_ROWS: Final = 10_000
"""Rows of one table: W&B shows no more. A longer series is several tables, one after the other, under one key."""
TABLE_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """One entry of a string series; ``step`` in micro-steps, ``time`` in milliseconds."""

    path: str
    step: int | None
    time: int | None
    value: str | None


def texts(rows: pa.RecordBatch) -> Iterator[Text]:
    """Yield the entries of string series that a batch of their rows holds."""
    yield from (Text(*entry) for entry in series_values(rows, AttributeType.STRING_SERIES))


def text_row(text: Text) -> str:
    """Return the JSON of an entry as a row of a table: step, time in seconds, value."""
    step = "null" if text.step is None else step_text(text.step)
    time = "null" if text.time is None else seconds_text(text.time)
    return f"[{step},{time},{json.dumps(text.value, ensure_ascii=False)}]"


class TableFile:
    """One W&B table of one attribute being written, row by row."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name = path, name
        self._file: IO[str] = path.open("x", encoding="utf-8", newline="")
        self._file.write('{"columns":["step","timestamp","value"],"data":[')
        self.rows = 0
        self.bytes = 0
        self.last: Text | None = None

    def add(self, text: Text) -> None:
        """Write one row."""
        row = text_row(text)
        self._file.write(f",{row}" if self.rows else row)
        self.rows += 1
        self.bytes += len(row)
        self.last = text

    @property
    def full(self) -> bool:
        """True if the next row belongs into another table."""
        return self.rows >= TABLE_ROWS or self.bytes >= TABLE_BYTES

    def close(self) -> tuple[int, str]:
        """Finish the file; return size and sha256."""
        self._file.write("]}")
        self._file.close()
        with self._path.open("rb") as file:
            return self._path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram as W&B holds it. ``exact`` is False if it had to be changed, and ``reason`` says how."""

    json: str
    exact: bool
    reason: str = ""


def histogram(value: Mapping[str, Any] | None) -> Histogram | None:
    """Return a Neptune histogram for the history; None if it is none (no value, or edges that do not fit)."""
    if value is None or value["edges"] is None or value["values"] is None:
        return None
    edges, counts, kind = list(value["edges"]), list(value["values"]), value["type"]
    if len(edges) != len(counts) + 1 or not counts or None in edges or None in counts:
        return None
    reason = ""
    if len(counts) > MAX_BINS:
        edges, counts = rebinned(edges, counts, density=kind == "DENSITY")
        reason = f"had more than {MAX_BINS} bins and were joined into that many"
    elif kind == "DENSITY":
        reason = "are densities, which W&B shows as counts"
    text = json_text({"_type": "histogram", "values": counts, "bins": edges})
    return Histogram(text, exact=not reason, reason=reason)


def rebinned(edges: list[float], values: list[float], *, density: bool) -> tuple[list[float], list[float]]:
    """Join neighbouring bins until there are 512; counts are summed, densities averaged by width."""
    cuts = [round(number * len(values) / MAX_BINS) for number in range(MAX_BINS + 1)]
    joined = []
    for begin, end in pairwise(cuts):
        if density:
            widths = [edges[i + 1] - edges[i] for i in range(begin, end)]
            total = sum(widths)
            mass = sum(width * value for width, value in zip(widths, values[begin:end], strict=True))
            joined.append(mass / total if total else max(values[begin:end]))
        else:
            joined.append(sum(values[begin:end]))
    return [edges[cut] for cut in cuts], joined


class TextTables:
    """Writes the tables of one run."""

    def __init__(
        self, placed: Layout, directory: Path, files: FileStage, events: EventSorter, account: Account
    ) -> None:
        self._placed, self._files, self._events, self._account = placed, files, events, account
        self._path = directory / "files" / ".table"
        self._table: TableFile | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        """Write a batch of rows of string series; they come series by series."""
        kind = str(AttributeType.STRING_SERIES)
        for text in texts(rows):
            if self._table is not None and (text.path != self._table.name or self._table.full):
                self.end()
            if self._table is None:
                self._table = TableFile(self._path, text.path)
            self._table.add(text)
            self._account.mapped[kind] += 1

    def end(self) -> None:
        """Finish the table that is being written."""
        if self._table is not None:
            self._close(self._table, self._table.name)
            self._table = None

    def _close(self, table: TableFile, path: str) -> None:
        kind = str(AttributeType.STRING_SERIES)
        size, sha256 = table.close()
        last = table.last or Text(path, None, None, None)
        step = self._placed.survey.highest if last.step is None else last.step
        key = self._placed.keys[path, kind]
        copy = Copy(self._path, size, sha256, "json")
        where = self._files.place_media(
            copy, key, "table", "table.json", StagedFile(path, kind, "", size, sha256, step)
        )
        facts = {
            "_type": "table-file",
            "path": where,
            "sha256": sha256,
            "size": size,
            "ncols": 3,
            "nrows": table.rows,
            "log_mode": "IMMUTABLE",
        }
        self._events.add(path, kind, step, last.time, codec.json_text(facts), counted=False)


class RunFiles:
    """Takes in the files of one run."""

    def __init__(self, run: LakeRun, placed: Layout, stage: FileStage, events: EventSorter, account: Account) -> None:
        self._run, self._placed, self._stage, self._events, self._account = run, placed, stage, events, account
        self._wanted = wanted_name(run)

    def add(self, kind: str, rows: pa.RecordBatch) -> None:
        """Take the files that rows of one attribute type name."""
        for path, step, time, value in series_values(rows, AttributeType(kind)):
            where = None if value is None else value["path"]
            if where is None:
                self._account.dropped[kind, "it names no file"] += 1
            elif kind == AttributeType.FILE_SET:
                self._file_set(path, kind)
            else:
                self._file(path, kind, where, step, time)

    def _file(self, path: str, kind: str, where: str, step: int | None, time: int | None) -> None:
        expected = {record.path: record.sha256 for record in self._run.file_records(path)}
        try:
            with self._run.open_file(where) as source:
                copy = self._stage.copy(source, where)
        except FileGoneError:
            self._account.dropped[kind, "its file is not in the lake"] += 1
            return
        self._same(path, copy.sha256, expected.get(where))
        staged = StagedFile(path, kind, "", 0, "", step)
        facts = None
        if kind in {AttributeType.FILE, AttributeType.FILE_SERIES}:
            facts = self._stage.media(copy, self._placed.keys[path, kind], staged)
        if facts is None:
            name = self._wanted(path)
            self._stage.keep(copy, name if step is None else f"{name}/step_{format_step(step)}", staged)
            (self._account.mapped if kind == AttributeType.FILE_SERIES else self._account.written)[kind] += 1
            return
        self._account.written[kind] += 1
        at = self._placed.survey.highest if step is None else step
        self._events.add(path, kind, at, time, codec.json_text(facts), counted=kind == AttributeType.FILE_SERIES)

    def _file_set(self, path: str, kind: str) -> None:
        members = [record for record in self._run.file_records(path) if record.attribute_type == kind]
        if not members:
            self._account.dropped[kind, "its files are not in the lake"] += 1
            return
        for record in members:
            with self._run.open_file(record.path) as source:
                copy = self._stage.copy(source, record.member or record.path)
            self._same(path, copy.sha256, record.sha256)
            copy.extension = ""  # a member keeps its own name
            name = record.member or record.path.rpartition("/")[2]
            self._stage.keep(copy, f"{self._wanted(path)}/{name}", StagedFile(path, kind, "", 0, "", None, name))
        self._account.written[kind] += 1

    def _same(self, path: str, sha256: str, expected: str | None) -> None:
        if expected is not None and sha256 != expected:
            raise TargetError(
                f"The file of {path!r} in run {self._run.run_id} is not the one the lake's manifest knows.",
                hint="Materialize the lake again; a file of it was changed.",
            )

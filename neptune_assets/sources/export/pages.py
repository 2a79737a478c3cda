"""How much memory a column of a Parquet part really takes: what its pages say, which a footer may hide.

A page is decompressed whole, so its size is known before it is read only from its header: a Thrift struct in front of
it, as parquet-format's ``parquet.thrift`` (PageHeader) and Thrift's compact protocol describe them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

HEADER_BYTES: Final = 1 << 16
"""No header is longer: what makes it long are two bounds of a page, which writers leave out if they are long."""
_RATIOS: Final = {"UNCOMPRESSED": 1, "SNAPPY": 32, "LZ4": 256, "LZ4_RAW": 256, "GZIP": 1_100, "ZSTD": 33_000}
"""How often as large as its compressed bytes a page can be at the most; unknown (BROTLI) is without bound."""
_HARMLESS: Final = 16 << 20
"""A chunk whose pages cannot hold as many bytes is not looked at."""


class PageError(ValueError):
    """The pages of a column cannot be followed."""


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """Bytes of a column chunk, decompressed: its dictionary, its largest page, all of it; and its number of values.

    They are what can be at the most if only that was looked at; ``values`` is None then.
    """

    dictionary: int
    page: int
    total: int
    values: int | None


def chunk_size(stream: Any, chunk: Any, *, exactly: bool) -> ChunkSize:
    """Return how large a chunk (pyarrow's ColumnChunkMetaData) is; unless ``exactly``, small ones are not looked at.

    Raises PageError if its pages are not where the footer says.
    """
    compressed = int(chunk.total_compressed_size)
    most = compressed * _RATIOS.get(chunk.compression, 1 << 40)
    if most <= _HARMLESS and not exactly:
        return ChunkSize(most, most, most, None)
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        start = min(start, chunk.dictionary_page_offset)
    dictionary = page = total = values = 0
    for kind, size, count in _headers(stream, start, start + compressed):
        total += size
        if kind == _DICTIONARY:
            dictionary = max(dictionary, size)
        else:
            page, values = max(page, size), values + count
    return ChunkSize(dictionary, page, total, values)


def _headers(stream: Any, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, uncompressed size and number of values of every page between two bytes of a file."""
    while place < end:
        stream.seek(place)
        header = _Thrift(stream.read(min(HEADER_BYTES, end - place)))
        fields = header.struct()
        kind, size, compressed = fields.get(1), fields.get(2), fields.get(3)
        if not (isinstance(kind, int) and isinstance(size, int) and isinstance(compressed, int)):
            raise PageError("a page has no sizes")
        if size < 0 or compressed < 0:
            raise PageError("a page has a negative size")
        inner = fields.get(8) if kind == _DATA_V2 else fields.get(5)
        count = inner.get(1, 0) if isinstance(inner, dict) else 0
        yield kind, size, count if isinstance(count, int) else 0
        place += header.place + compressed
    if place != end:
        raise PageError("its pages end elsewhere than the footer says")


_DICTIONARY: Final = 2
_DATA_V2: Final = 3
_DEPTH: Final = 8


class _Thrift:
    """Reads one struct of Thrift's compact protocol: whole numbers and structs are kept, all else is passed over."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        if depth > _DEPTH:
            raise PageError("the header of a page is nested too deep")
        while True:
            head = self._byte()
            if head == 0:
                return fields
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in {1, 2}:
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in {4, 5, 6}:
            return self._zigzag()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind == 12:
            return self.struct(depth + 1)
        raise PageError("the header of a page cannot be understood")

    def _byte(self) -> int:
        if self.place >= len(self._content):
            raise PageError("the header of a page is cut off")
        self.place += 1
        return self._content[self.place - 1]

    def _varint(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
        raise PageError("the header of a page cannot be understood")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _skip(self, count: int) -> None:
        if count > len(self._content) - self.place:
            raise PageError("the header of a page is cut off")
        self.place += count

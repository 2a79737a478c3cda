"""Read footers of Parquet files that may be damaged, without what ends the process when pyarrow looks at a chunk.

``RowGroupMetaData.column`` of pyarrow 25 does not catch what Parquet's own code throws for a chunk of another type than
its schema, for histograms of levels of another length, or for a chunk that claims to be encrypted (parquet-cpp,
``ColumnChunkMetaData``). So footers are walked first: they are ``FileMetaData`` of parquet-format's
``parquet.thrift``, in Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

FOOTER_BYTES: Final = 64 << 20
"""No footer is larger."""
_TAIL: Final = 1 << 16
"""What is fetched of a file's end at once; most footers are in it."""


def read_footer(stream: Any) -> pq.FileMetaData:
    """Read the footer of a seekable file. Raises ArrowInvalid if it is damaged or claims more than a footer may."""
    end = stream.seek(0, 2)
    end = stream.tell() if end is None else end
    tail = _end_of(stream, end, _TAIL)
    length = int.from_bytes(tail[-8:-4], "little")
    if length > FOOTER_BYTES:
        raise pa.ArrowInvalid(f"its footer takes {length >> 20:,} MiB, more than {FOOTER_BYTES >> 20} MiB")
    if length + 8 > len(tail):
        tail = _end_of(stream, end, length + 8)
    stream.seek(0)
    # Read from the bytes that are walked: the file might be another by the time it was read once more.
    metadata = pq.read_metadata(pa.BufferReader(tail))
    _Footer(tail[-8 - length : -8], metadata.schema).check()
    return metadata


def _end_of(stream: Any, end: int, count: int) -> bytes:
    stream.seek(max(0, end - count))
    return bytes(stream.read(min(end, count)))


class _Footer:
    """Walks a footer for what must not be looked at."""

    def __init__(self, content: bytes, schema: Any) -> None:
        self._content = content
        self._leaves = [schema.column(number) for number in range(len(schema))]
        self._place = 0

    def check(self) -> None:
        """Raise ValueError for a footer that must not be looked at."""
        try:
            for number, kind in self._fields():
                if number == _ROW_GROUPS and kind == _LIST:
                    for _ in range(self._list()):
                        self._row_group()
                else:
                    self._skip(kind)
        except (IndexError, RecursionError) as error:
            raise pa.ArrowInvalid("its footer cannot be followed") from error

    def _row_group(self) -> None:
        for number, kind in self._fields():
            if number == 1 and kind == _LIST:
                count = self._list()
                if count != len(self._leaves):
                    raise pa.ArrowInvalid("a row group does not have the columns of its schema")
                for leaf in self._leaves:
                    self._chunk(leaf)
            else:
                self._skip(kind)

    def _chunk(self, leaf: Any) -> None:
        for number, kind in self._fields():
            if number in _ENCRYPTED:
                raise pa.ArrowInvalid(f"column {leaf.path} is encrypted")
            if number == 3 and kind == _STRUCT:
                for inner, inner_kind in self._fields():
                    if inner == _SIZE_STATISTICS and inner_kind == _STRUCT:
                        self._size_statistics(leaf)
                    elif inner == 1 and inner_kind == _INT32:
                        if self._varint() != 2 * _PHYSICAL.index(leaf.physical_type):
                            raise pa.ArrowInvalid(f"a chunk of column {leaf.path} has another type than its schema")
                    else:
                        self._skip(inner_kind)
            else:
                self._skip(kind)

    def _size_statistics(self, leaf: Any) -> None:
        for number, kind in self._fields():
            if number in {2, 3} and kind == _LIST:
                levels = leaf.max_repetition_level if number == 2 else leaf.max_definition_level
                place = self._place
                if self._list() not in {0, levels + 1}:
                    raise pa.ArrowInvalid(f"the levels of column {leaf.path} are not those of its schema")
                self._place = place
            elif number == 1 and leaf.physical_type != "BYTE_ARRAY":
                raise pa.ArrowInvalid(f"column {leaf.path} has sizes of another type")
            self._skip(kind)

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; whoever asks moves past its value."""
        number = 0
        while head := self._content[self._place]:
            self._place += 1
            if head >> 4:
                number += head >> 4
            else:
                coded = self._varint()
                number = (coded >> 1) ^ -(coded & 1)
            yield number, head & 15
        self._place += 1

    def _list(self) -> int:
        """Move into a list and return how many items it has."""
        head = self._content[self._place]
        self._place += 1
        return head >> 4 if head >> 4 < 15 else self._varint()

    def _varint(self) -> int:
        content, place = self._content, self._place
        number = shift = 0
        while (byte := content[place]) >= 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
            place += 1
            if shift > 63:
                raise pa.ArrowInvalid("its footer cannot be followed")
        self._place = place + 1
        return number | byte << shift

    def _skip(self, kind: int) -> None:
        if kind in {1, 2}:
            return
        if kind in {4, 5, 6}:
            self._varint()
        elif kind == _BINARY:
            size = self._varint()
            self._place += size
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner)
        elif kind in {_LIST, 10}:
            inner = self._content[self._place] & 15
            count = self._list()
            if inner in {1, 2, 3}:
                self._place += count
            else:
                if count > len(self._content):
                    raise pa.ArrowInvalid("its footer cannot be followed")
                for _ in range(count):
                    self._skip(inner)
        elif kind in {3, 7}:
            self._place += 1 if kind == 3 else 8
        else:
            raise pa.ArrowInvalid("its footer cannot be followed")


_PHYSICAL: Final = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_INT32: Final = 5
_BINARY: Final = 8
_LIST: Final = 9
_STRUCT: Final = 12
_ROW_GROUPS: Final = 4
_SIZE_STATISTICS: Final = 16
_ENCRYPTED: Final = frozenset({8, 9})

"""Answers of a live server, changed on their way by what hypothesis draws; what holds of any source all the same."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as some

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, UnsafePathError
from neptune_assets.schema import SERIES_TYPES
from neptune_assets.sources.protocol import Source
from neptune_assets.testing.sources import Read, read

_T = TypeVar("_T")
_MOST_REQUESTS: Final = 3_000
ODD: Final[Sequence[Any]] = (
    *(
        None,
        True,
        False,
        "",
        "x",
        "sys/id",
        "\ud800",
        "\0",
        "9" * 40,
        "NaN",
        "+58000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+09:00",
    ),
    *(0, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**17, -(10**17), 10**400, 1.5, 1e300, math.nan, math.inf, -math.inf),
    *([], {}, [None], [[1]], {"value": 1}),
)
_NUMBERS: Final = (
    0,
    -1,
    1,
    2**31 - 1,
    -(2**31),
    2**63 - 1,
    -(2**63),
    10**17,
    1e300,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
)


@dataclass(frozen=True)
class Mutation:
    """What happens to the answers of one call: something at a place, counted from 0 at the start to 1 at the end."""

    call: str
    place: float
    kind: str
    odd: Any = None
    after: int = 0
    """So many answers of the call go unchanged first."""


def mutations(calls: Sequence[str]) -> some.SearchStrategy[list[Mutation]]:
    """Some changes of answers to some of these calls."""
    one = some.builds(
        Mutation,
        some.sampled_from(calls),
        some.floats(0, 1, exclude_max=True),
        some.sampled_from(["replace", "replace", "replace", "delete", "repeat", "empty", "bytes", "cut"]),
        some.sampled_from(ODD),
        some.integers(0, 1),
    )
    return some.lists(one, min_size=1, max_size=3)


@dataclass
class Mutator:
    """Changes answers as mutations say; ``messages`` are the protobuf classes of calls, the rest is JSON."""

    mutations: Sequence[Mutation]
    messages: Mapping[str, Any] = field(default_factory=dict)
    seen: Counter[int] = field(default_factory=Counter)
    requests: int = 0

    def __call__(self, path: str, body: bytes) -> bytes:
        """Return the body of the answer to a request."""
        self.requests += 1
        if self.requests > _MOST_REQUESTS:
            return b"null"
        for number, mutation in enumerate(self.mutations):
            if mutation.call in path:
                self.seen[number] += 1
                if self.seen[number] > mutation.after:
                    body = self._changed(mutation, path, body)
        return body

    def _changed(self, mutation: Mutation, path: str, body: bytes) -> bytes:
        if mutation.kind in {"bytes", "cut"}:
            place = int(mutation.place * len(body))
            return body[:place] if mutation.kind == "cut" else body[:place] + b"\xff" + body[place + 1 :]
        message = next((found for call, found in self.messages.items() if call in path), None)
        try:
            if message is None:
                return json.dumps(_json_changed(json.loads(body), mutation)).encode()
            parsed = message.FromString(body)
        except (ValueError, DecodeError):
            # Not of this form: an answer without a body, or one that was changed before.
            return body
        _message_changed(parsed, mutation)
        return bytes(parsed.SerializeToString())


def _json_changed(answer: Any, mutation: Mutation) -> Any:
    root = [copy.deepcopy(answer)]
    places = list(_places(root))
    holder, key = places[int(mutation.place * len(places))]
    if mutation.kind == "replace":
        holder[key] = mutation.odd
    elif mutation.kind == "repeat" and isinstance(holder[key], list):
        holder[key] = holder[key] * 2
    elif mutation.kind == "empty" and isinstance(holder[key], list | dict | str):
        holder[key] = type(holder[key])()
    elif mutation.kind == "delete" and holder is not root:
        del holder[key]
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def _message_changed(message: Message, mutation: Mutation) -> None:
    places = list(_fields(message))
    if not places:
        return
    holder, name = places[int(mutation.place * len(places))]
    value = getattr(holder, name)
    repeated = not isinstance(value, str | bytes | int | float | Message)
    if mutation.kind == "delete" or (mutation.kind == "empty" and repeated):
        holder.ClearField(name)
    elif mutation.kind == "repeat" and repeated:
        value.extend(list(value))
    elif mutation.kind == "replace" and not repeated and not isinstance(value, Message):
        odd = (
            mutation.odd
            if isinstance(mutation.odd, type(value))
            else _NUMBERS[int(mutation.place * 1_000) % len(_NUMBERS)]
        )
        for candidate in (odd, *_NUMBERS) if not isinstance(value, str) else (mutation.odd, "", "x", "sys/id"):
            try:
                setattr(holder, name, candidate)
            except (TypeError, ValueError, OverflowError, UnicodeError):
                continue
            return


def _fields(message: Message) -> Iterator[tuple[Message, str]]:
    for descriptor, value in message.ListFields():
        yield message, descriptor.name
        items = [value] if isinstance(value, Message) else value
        for item in items if not isinstance(items, str | bytes | int | float) else ():
            if isinstance(item, Message):
                yield from _fields(item)


def survives(source: Source, project: str, mutator: Mutator) -> None:
    """Read everything there is: listing may end in one clear error, reading never, and what has no end is an error."""
    _answer_of(source.projects)
    infos = _answer_of(lambda: source.runs(project))
    if infos is None:
        assert mutator.requests <= _MOST_REQUESTS, "there is no end of requests"
        return
    ids = [info.run_id for info in infos]
    assert len(set(ids)) == len(ids)
    for info in infos:
        info.run_id.encode()
        assert info.size_hint >= 0
    result = read(source, project, ids)
    for run_id in ids:
        _whole(source, project, run_id, result)
    for issue in source.problems(project):
        issue.message.encode()
    assert mutator.requests <= _MOST_REQUESTS, "there is no end of requests"


def _answer_of(ask: Callable[[], _T]) -> _T | None:
    """What is answered; None for an error of ours."""
    try:
        return ask()
    except NeptuneAssetsError:
        return None


def _whole(source: Source, project: str, run_id: str, result: Read) -> None:
    rows = result.rows[run_id]
    singles = Counter(
        (row["attribute_path"], row["attribute_type"]) for row in rows if row["attribute_type"] not in SERIES_TYPES
    )
    assert not [item for item, count in singles.items() if count > 1], "a value is there twice"
    for issue in (*result.ends[run_id].errors, *result.ends[run_id].notes):
        issue.message.encode()
    for row in rows:
        if row["file_value"] is None:
            continue
        try:
            for member in source.files(project, run_id, row["file_value"]["path"]):
                try:
                    with member.open() as stream:
                        while stream.read(1 << 20):
                            pass
                except (FileGoneError, UnsafePathError):
                    continue
        except (FileGoneError, UnsafePathError):
            continue

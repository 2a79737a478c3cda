"""What reading one run of an export brought to light, and how it is told at the run's end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from neptune_assets.schema import AttributeType
from neptune_assets.sources.protocol import Issue, RunEnd
from neptune_assets.sources.times import OddTimes

_NAMED: Final = 20
"""Attributes named one by one in notes; further ones are counted."""


@dataclass(slots=True)
class Findings:
    """What reading one run brought to light, collected for its RunEnd."""

    errors: list[Issue] = field(default_factory=list)
    notes: list[Issue] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    lost_files: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    rounded: dict[str, int] = field(default_factory=dict)
    empty_points: Counter[tuple[str, str]] = field(default_factory=Counter)
    references: dict[str, str] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    doubtful_times: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    odd_times: OddTimes = field(default_factory=OddTimes)

    def count(self, name: str, rows: int) -> None:
        """Add rows to a repair."""
        if rows:
            self.repairs[name] += rows

    def error(self, message: str) -> None:
        """Report what makes the run partial."""
        self.errors.append(Issue(message))

    def note(self, message: str) -> None:
        """Report without making the run partial."""
        self.notes.append(Issue(message))

    def end(self, run_id: str, zone: str | None) -> RunEnd:
        """Return the run's end; ``zone`` is the time zone that times of its series were read in, if any."""
        for attribute, count in self.lost_files.items():
            self.errors.append(
                Issue(
                    f"{count} files of {attribute} were not downloaded by the exporter. Export the run again.",
                    attribute,
                    str(AttributeType.FILE_SERIES),
                )
            )
        for kind, count in self.unusable.items():
            self.error(
                f"{count} rows of type {kind} are of no known type or points without a step; they were left out."
            )
        for at, ((part, reason), count) in enumerate(self.refused.items()):
            if at == _NAMED:
                self.error(f"{sum(self.refused.values()):,} rows in all could not be held; they were left out.")
                break
            self.error(f"Part {part}: {reason}, in {count:,} rows, which were left out.")
        self.notes.extend(self.odd_times.issues())
        for at, (attribute, value) in enumerate(sorted(self.rounded.items())):
            if at == _NAMED:
                self.note(f"{len(self.rounded) - _NAMED} more whole numbers beyond 2^53 may have been rounded.")
                break
            self.notes.append(
                Issue(
                    f"{attribute} = {value} is beyond 2^53; the exporter may have rounded it.",
                    attribute,
                    str(AttributeType.INT),
                )
            )
        for (attribute, kind), count in self.empty_points.items():
            self.notes.append(Issue(f"{count} points of {attribute} have a time and no value.", attribute, kind))
        for attribute in sorted(self.indexed):
            self.notes.append(
                Issue(
                    f"Steps of {attribute} are indexes 0, 1, 2 ..., because the exporter kept no steps of file series.",
                    attribute,
                    str(AttributeType.FILE_SERIES),
                )
            )
        if self.doubtful_times:
            self.note(
                f"{self.doubtful_times} times lie in an hour that {zone} has twice or not at all; "
                "the first, or the time after the gap, was taken."
            )
        repairs = {name: count for name, count in self.repairs.items() if count}
        return RunEnd(run_id, None, tuple(self.errors), tuple(self.notes), repairs)

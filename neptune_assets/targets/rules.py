"""The rules for names: from settings or a YAML file to a function that names attributes and one that drops them.

Rules know only attribute paths, so they hold for every target alike. A target makes its own legal name out of the
wanted one and tells apart what would meet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from neptune_assets.errors import SettingsError
from neptune_assets.settings import NameRules

_REMEMBERED: Final = 100_000


class Rules:
    """Compiled rules. Paths go in, wanted names or the rule that drops them come out."""

    def __init__(self, settings: NameRules) -> None:
        self.settings = settings
        self._keep = tuple(settings.keep)
        self._drop = [re.compile(pattern) for pattern in settings.drop]
        self._strip = sorted(settings.strip, key=len, reverse=True)
        self.dropped_by = lru_cache(maxsize=_REMEMBERED)(self._dropped_by)

    @property
    def refuses_collisions(self) -> bool:
        """True if runs in which two attributes would have one name are not loaded."""
        return self.settings.collisions == "refuse"

    @property
    def drops(self) -> bool:
        """True if there is any rule that drops attributes."""
        return bool(self._drop)

    @property
    def changes(self) -> bool:
        """True if the rules can change what a target holds of a run; ``naming`` is the target's own affair."""
        return bool(self._drop or self._strip or self.settings.rename)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the rules would name or drop attributes differently; empty where they do nothing."""
        if not self.changes:
            return ""
        chosen = self.settings.model_dump(include={"keep", "drop", "strip", "rename"})
        return blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=8).hexdigest()

    def digest(self, content: str) -> str:
        """Return the digest that a target keeps for content of this digest: the same only under the same rules."""
        if not self.changes:
            return content
        size = max(len(content) // 2, 8)
        return blake2b(f"{content}\n{self.fingerprint}".encode(), digest_size=min(size, 64)).hexdigest()

    def name(self, path: str) -> str:
        """Return the name that the rules want for an attribute; several attributes may want one."""
        if path.startswith(self._keep):
            return path
        for rule in self.settings.rename:
            if path.startswith(rule.prefix):
                path = rule.to + path[len(rule.prefix) :]
                break
        for prefix in self._strip:
            # A name that would be empty stays: an attribute cannot be told apart by nothing.
            if path.startswith(prefix) and len(path) > len(prefix):
                return path[len(prefix) :]
        return path

    def _dropped_by(self, path: str) -> str | None:
        """Return the pattern that drops an attribute, the first that does; None if it is loaded."""
        if path.startswith(self._keep):
            return None
        return next((pattern.pattern for pattern in self._drop if pattern.search(path)), None)


def read_rules(settings: NameRules | str | None) -> Rules:
    """Return the rules that settings hold or name. Raises SettingsError, naming file and line, if they are wrong."""
    if isinstance(settings, str):
        settings = read_rule_file(Path(settings))
    return Rules(settings or NameRules())


def read_rule_file(path: Path) -> NameRules:
    """Read and check a YAML file of rules. Raises SettingsError with the line of every mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The rules for names in {str(path)!r} cannot be read: {error}.",
            hint="Set targets.names to a UTF-8 YAML file, or write the rules there.",
        ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise SettingsError(
            f"{path}{line}: this is no YAML: {getattr(error, 'problem', None) or error}.", hint="Correct the line."
        ) from error
    try:
        return NameRules.model_validate({} if values is None else values)
    except ValidationError as error:
        mistakes = [
            f"{path}:{_line(root, item['loc'])}: {'.'.join(map(str, item['loc'])) or 'rules'}: {item['msg']}"
            for item in error.errors()
        ]
        raise SettingsError(
            "The rules for names are wrong: " + "; ".join(mistakes) + ".",
            hint=f"Rules are {', '.join(NameRules.model_fields)}.",
        ) from None


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Return the line, from 1, of what a validation error points at, or of the nearest thing around it."""
    return max([1, *_marks(node, location)])


def _marks(node: yaml.Node | None, location: tuple[Any, ...]) -> Iterator[int]:
    """Yield the lines of the nodes on the way to ``location``, from the root on, as far as it leads."""
    if node is None:
        return
    yield node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return
            yield found[0].start_mark.line + 1
            node = found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            yield node.start_mark.line + 1
        else:
            return

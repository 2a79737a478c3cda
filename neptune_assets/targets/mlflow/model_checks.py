"""Comparing entries of MLflow's Model Registry with what they must be; each difference is one line of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from neptune_assets.targets.mlflow.model_registry import STAGE, Entry, alias_of
from neptune_assets.targets.order import natural


def compare_version(wanted: Entry, held: Sequence[Entry], aliases: Mapping[str, int], model: str) -> Iterator[str]:
    """Yield how a model version differs from what it must be.

    ``held`` are our versions of the model in MLflow's order, ``aliases`` all aliases of it with the number they name.
    """
    mine = [entry for entry in held if entry.key == wanted.key]
    if len(mine) != 1:
        yield f"the registry holds version {wanted.version_id!r} {len(mine)} times"
        return
    if mine[0].unchangeable != wanted.unchangeable:
        yield f"source, run and link are {mine[0].unchangeable} instead of {wanted.unchangeable}"
    yield from compare_entry(wanted.description, wanted.tags, mine[0].description, mine[0].tags)
    if [entry.version_id for entry in held] != sorted((entry.version_id for entry in held), key=natural):
        yield f"the versions of {model} are not in Neptune's order"
    stage = alias_of(wanted.tags.get(STAGE))
    if stage is None:
        return
    of_stage = [entry for entry in held if entry.tags.get(STAGE) == stage]
    named = next((entry for entry in held if entry.number == aliases.get(stage)), None)
    if stage not in aliases:
        yield f"alias {stage!r} is missing"
    elif named is not None and of_stage and named.key != of_stage[-1].key:
        # An alias that names somebody else's version is theirs.
        yield f"alias {stage!r} names {named.version_id} instead of {of_stage[-1].version_id}"


def compare_entry(
    description: str, tags: Mapping[str, str], held_description: str, held_tags: Mapping[str, str]
) -> Iterator[str]:
    """Yield how description and tags differ from what they must be; more tags than that may be there."""
    if description != held_description:
        yield f"the description is {held_description[:100]!r} instead of {description[:100]!r}"
    for key, value in sorted(tags.items()):
        if held_tags.get(key) != value:
            yield f"tag {key!r} is {held_tags.get(key, '')[:100]!r} instead of {value[:100]!r}"

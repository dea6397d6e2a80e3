"""What is said of a key that a schema does not have: which ones are like it, and which there are."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

_MOST = 40  # of so many keys all are listed


def words(schema: type[BaseModel], place: list[str | int]) -> str:
    """`place`: keys and numbers of list items, the last the key that is not there."""
    *above, key = place
    names = sorted({name for model in _models_at(schema, above) for name in model.model_fields})
    near = meant(key, names)
    said = ["there is no such key", *([near] if near else [])]
    said += [f"there are {', '.join(names)}"] if names and (len(names) <= _MOST or not near) else []
    return "; ".join(said)


def meant(key: str | int, names: Iterable[str]) -> str:
    """`did you mean a or b?`, of the names that are like the key; "" where none is."""
    near = get_close_matches(str(key)[:100], names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _models_at(schema: type[BaseModel], place: list[str | int]) -> list[type[BaseModel]]:
    found = [schema]
    for part in place:
        fields = [model.model_fields[part] for model in found if part in model.model_fields]
        found = [model for field in fields for model in _models_in(field.annotation)] if fields else found
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)

"""What the keys of params.yaml demand of each other and of the device. Imports no MindSpore: what can't work stops the
first stage, and not the one that would fail hours later."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.contradictions import data, device, kept, model, objective, paths, pictures, train

if TYPE_CHECKING:
    from pipeline.params import Params


def contradictions(params: "Params") -> Iterator[tuple[str, str]]:
    """(key, why it can't be so beside the other keys) of each fault."""
    for part in (device, paths, model, data, objective, train, kept, pictures):
        yield from part.faults(params)

"""How a picture becomes rows."""

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.cache.format.names import latent_row
from pipeline.data.how import How
from pipeline.stage import StageError

if TYPE_CHECKING:
    from pipeline.params import CacheLatents


@dataclass(frozen=True)
class Preparation:
    """As params.yaml has it, or with what a set has in its place."""

    store: str  # moments | sample | mean
    crop: str  # center | random
    crops: int
    flip: bool
    interpolation: str
    background: tuple[int, int, int]
    fresh: bool = False  # crops are drawn anew each time that a picture is read: one row stands for all of them

    @property
    def fingerprint(self) -> dict:
        """What shapes a row of its own. How many crops there are and whether there are mirrored rows is in the rows'
        names."""
        return {
            "store": self.store,
            "crop": self.crop,
            "interpolation": self.interpolation,
            "background": list(self.background),
        }

    @property
    def variants(self) -> list[tuple[bool, int]]:
        """(mirrored, number of the crop) of the rows that a picture has."""
        crops = self.crops if self.crop == "random" and not self.fresh else 1
        return [(flip, crop) for flip in ((False, True) if self.flip else (False,)) for crop in range(crops)]

    def of(self, how: How) -> "Preparation":
        """That of a set. Raises StageError where it wants several crops and has no other than the one in the center."""
        said = {name: value for name, value in vars(how).items() if value is not None}
        if said.get("crops", 1) > 1 and said.get("crop", self.crop) != "random":
            whose = "its own" if "crop" in said else "that of cache_latents"
            raise StageError(
                f"a set of data.images has crops: {said['crops']}, and its crop is center ({whose}): a picture has one "
                "center; give the set crop: random, or remove its crops"
            )
        return replace(self, **said)

    def row(self, image: bytes, flip: bool, crop: int, fingerprint: dict) -> bytes:
        """The name of a row in a cache of this `fingerprint`: what differs from it is in the name."""
        own = {name: value for name, value in self.fingerprint.items() if fingerprint.get(name, value) != value}
        return latent_row(image, flip, crop, json.dumps(own, sort_keys=True).encode() if own else b"")


def usual(latents: "CacheLatents") -> Preparation:
    """That of params.yaml, for pictures whose sets say nothing of their own."""
    background = tuple(latents.background)
    return Preparation(latents.store, latents.crop, latents.crops, latents.flip, latents.interpolation, background)

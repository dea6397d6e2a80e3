"""How pictures become latents where their set says it: in place of what cache_latents of params.yaml has for all."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class How:
    """None: as params.yaml has it."""

    flip: bool | None = None
    crop: str | None = None
    crops: int | None = None
    background: tuple[int, int, int] | None = None


def dumps(hows: list[How]) -> str:
    return json.dumps([asdict(how) for how in hows])


def loads(text: bytes | None) -> list[How]:
    """The inverse; what a table without this text has is as params.yaml says."""
    found = [How(**how) for how in json.loads(text)] if text else [How()]
    return [How(how.flip, how.crop, how.crops, how.background and tuple(how.background)) for how in found]

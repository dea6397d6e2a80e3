"""The weights in between that the train stage has kept, by their steps."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.stage import StageError


def saved(folder: Path, wanted: str | Sequence[int], adapter: bool = False) -> list[tuple[int, Path]]:
    """(step, file) in order of those `wanted`, "all" or their steps, in `folder`, the train stage's outs; of an adapter, or
    of the UNet. Raises StageError, which says which are there, when one is not."""
    pattern = re.compile(rf"step-(\d+)\.{'safetensors' if adapter else 'ckpt'}")
    found = {int(m[1]): file for file in folder.glob("*") if (m := pattern.fullmatch(file.name))}
    steps = sorted(found if wanted == "all" else wanted)
    if wanted == "all" and not found:
        raise StageError(f"sample.saved_steps is all and {folder} holds no weights in between; set train.save_interval "
                         "and train again, or sample.saved_steps to []")  # fmt: skip
    if absent := [str(step) for step in steps if step not in found]:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise StageError(f"sample.saved_steps asks for the weights of step {', '.join(absent)}, and {folder} holds those "
                         f"of: {there}; train.save_interval and train.save_limit say which are kept")  # fmt: skip
    return [(step, found[step]) for step in steps]

"""What is left over from another model.config."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.contradictions.pictures import own_sides
from pipeline.contradictions.train import peak_rate

if TYPE_CHECKING:
    from pipeline.params import Params

PRESET = (
    "`make preset NAME=...` sets all that goes with model.config: sdxl-1x910b, sdxl-lora-1x910b, sdxl-8x910b, "
    "sdxl-16x910b, tiny"
)


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    """What can only be left over; what is merely unusual is in pipeline/doubts.py."""
    resolution, rate = params.index.resolution, peak_rate(params)
    batch = params.train.batch_size
    if params.model.config == "tiny":
        if resolution > 512:
            yield "index.resolution", f"{resolution} is SDXL's, and the tiny model was trained at 64; {PRESET}"
        return
    if rate >= 5e-4 and params.train.optimizer != "prodigy" and params.train.adapter == "none":
        yield (
            "train.learning_rate",
            f"{rate:g} ruins SDXL within a few steps, it is the tiny model's; wanted 4e-7 to 1e-5; {PRESET}",
        )
    if resolution < 256:
        yield "index.resolution", f"{resolution} is the tiny model's, and SDXL was trained at 1024; {PRESET}"
    elif batch * (resolution / 1024) ** 2 > 64:
        yield "train.batch_size", f"{batch} pictures of {resolution}² at once fit no device with SDXL; {PRESET}"
    for key in ("width", "height"):
        if (side := getattr(params.sample, key)) < 256:
            yield f"sample.{key}", f"{side} is the tiny model's, and SDXL draws 1024 pixels a side; {PRESET}"
    for place, key, side in own_sides(params):  # which presets leave as they are
        if side < 256:
            yield (
                f"{place}.{key}",
                f"{side} is the tiny model's, and SDXL draws 1024 pixels a side; take it out of this prompt, "
                "which then has the usual one, or give it another",
            )

"""What `sample` and the previews draw."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.contradictions.data import side_multiple
from pipeline.models.config import CONFIGS
from pipeline.sampling.limits import most_steps

if TYPE_CHECKING:
    from pipeline.params import Params, Prompt, Sample


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    """Of those that `sample` draws, and of the previews."""
    sample, train = params.sample, params.train
    yield from _prompts([("sample", sample)], sample.sampler, params)
    yield from _prompts(own_prompts("sample.prompts", sample.prompts), sample.sampler, params)
    yield from _prompts(own_prompts("train.previews", train.previews), train.preview_sampler, params)
    for key, sampler in (("sample.sampler", sample.sampler), ("train.preview_sampler", train.preview_sampler)):
        if params.diffusion.prediction == "flow" and sampler != "euler":
            yield (
                key,
                f"{sampler} goes by the noise schedule of epsilon and v; wanted euler with diffusion.prediction flow",
            )


def _prompts(
    prompts: Iterable[tuple[str, "Sample | Prompt"]], sampler: str, params: "Params"
) -> Iterator[tuple[str, str]]:
    diffusion, multiple = params.diffusion, side_multiple(CONFIGS[params.model.config])
    most = most_steps(sampler, diffusion.zero_terminal_snr or diffusion.prediction == "flow")
    for place, one in prompts:
        for key in ("width", "height"):
            side = getattr(one, key)
            if side is not None and side % multiple:
                yield f"{place}.{key}", f"must be a multiple of {multiple}, found {side}"
        if one.steps is not None and one.steps > most:
            yield (
                f"{place}.steps",
                f"must be below {most + 1}: SDXL's own timesteps leave sampler {sampler} no more steps; found {one.steps}",
            )


def own_sides(params: "Params") -> Iterator[tuple[str, str, int]]:
    """(place in params.yaml, "width" or "height", pixels) of prompts and previews that have some of their own."""
    for key, prompts in (("sample.prompts", params.sample.prompts), ("train.previews", params.train.previews)):
        for place, one in own_prompts(key, prompts):
            yield from (
                (place, side, found) for side in ("width", "height") if (found := getattr(one, side)) is not None
            )


def own_prompts(key: str, prompts: "Sequence[str | Prompt]") -> Iterator[tuple[str, "Prompt"]]:
    """Those with settings of their own, each with its place in params.yaml."""
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            yield f"{key}.{number}", prompt

"""The pictures of several models, drawn by this process, by several of this computer, or on the nodes of a cluster: a
picture depends on its model and on those that it is drawn together with, and not on who draws it."""

import uuid
from collections.abc import Callable, Iterator
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import hardware, store
from pipeline.cache.building.tokens import Tokenizer
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.sampling.picture import pictures
from pipeline.stage import StageError
from pipeline.weights.adapters.apply import adapted_texts, adapted_unet
from pipeline.workers.crew import Files, crew
from pipeline.workers.share import Away, Done, Gone, Work, share


class Model(NamedTuple):
    """By its files."""

    name: str  # in the pictures' files
    unet: Path
    base: Path | None  # the one that `unet`, an adapter, is merged into
    encoders: tuple[Path, Path, Path | None]  # CLIP-L, bigG, and an adapter that is merged into them
    decoder: Path

    def read(self) -> set[Path]:
        return {path for path in (self.unet, self.base, *self.encoders, self.decoder) if path is not None}


class Unit(NamedTuple):
    """A batch."""

    model: Model
    chosen: list[int]  # of `pictures`, of one size and number of steps
    count: int  # those that are wanted; the others fill the batch


Painted = dict[tuple[str, int], np.ndarray]  # (model, place among `pictures`) -> (H, W, 3) uint8
Painter = Callable[[Unit, Callable[[], object]], Painted]  # of a unit; the second is called after each step


def paint(
    params: Params,
    units: list[Unit],
    stepped: Callable[[int], object],
    make: Callable[[Params, Files], Painter] | None = None,
) -> Painted:
    """All units, by whom device.workers and device.cluster say. stepped(number): called as steps are done. `make` is
    `painter`. Raises StageError."""
    make = make or painter
    read = set().union(*(unit.model.read() for unit in units), {Path(params.model.tokenizer)})
    files, found = {str(path): path for path in sorted(read)}, {}
    with crew(params.device, partial(_worker, make, params), files) as workers:
        if workers is None:
            draw = make(params, files)
            for unit in units:
                found |= draw(unit, partial(stepped, 1))
            return found
        while lacking := [unit for unit in units if (unit.model.name, unit.chosen[0]) not in found]:
            for (made,) in share(workers, lacking, lambda _, number: stepped(number)):
                try:
                    found |= _taken(made)
                except Gone:  # its node died just then, and others draw it again
                    continue
    return found


def painter(params: Params, files: Files) -> Painter:
    """It has one UNet in memory, of the model that was drawn with last. files: by the paths that models name, where they
    are. Raises StageError."""
    hardware.check(params, "sample")
    # Only now: importing MindSpore takes seconds.
    from pipeline.device import setup

    from pipeline.models.encode import text_encoder, vae_decoder
    from pipeline.sampling import draw, unet
    from pipeline.sampling.prompts import encode

    p, config, diffusion = params.sample, CONFIGS[params.model.config], params.diffusion
    device, wanted = setup(params.device.target), pictures(p)
    tokenizer = Tokenizer(files[params.model.tokenizer])
    chunks, emphasis = params.cache_text.chunks, params.cache_text.emphasis
    prompts, negative_prompts = [one.prompt for one in wanted], [one.negative_prompt for one in wanted]
    factor = diffusion.scaling_factor or config.vae.scaling_factor

    def here(path: Path | None) -> Path | None:
        return path and files[str(path)]

    @cache
    def texts(*encoders: Path | None) -> tuple[draw.Text, draw.Text]:
        *checkpoints, adapter = map(here, encoders)
        tensors = adapted_texts(*checkpoints, adapter, config) if adapter else None
        encoder = text_encoder(config, *checkpoints, device, "float32", tensors)
        return encode(prompts, negative_prompts, tokenizer, encoder, chunks, emphasis, config.clip_l.width)

    @cache
    def network() -> tuple[Callable, Callable]:
        return unet.make(config.unet, device, p.precision)

    @cache
    def decoder(path: Path) -> Callable[[np.ndarray], np.ndarray]:
        return vae_decoder(config, here(path), device, "float32")

    loaded: Model | None = None

    def painted(unit: Unit, stepped: Callable[[], object]) -> Painted:
        nonlocal loaded
        model, chosen = unit.model, unit.chosen
        of_all, negative = texts(*model.encoders)
        load, predict = network()
        if model != loaded:
            load(here(model.unet), adapted_unet(here(model.base), here(model.unet), config) if model.base else None)
            loaded = model
        latents = draw.latents(
            predict,
            [wanted[index] for index in chosen],
            (of_all[0][chosen], of_all[1][chosen]),
            (negative[0][chosen], negative[1][chosen]),
            config,
            p.sampler,
            diffusion,
            p.guidance_rescale,
            stepped,
        )
        if not np.isfinite(latents).all():
            raise StageError(
                f"the latents drawn with {model.unet} are not finite; with sample.precision: {p.precision} try "
                "float32 or bfloat16, else its weights are broken"
            )
        decode, latents = decoder(model.decoder), latents / factor + diffusion.shift_factor
        return {
            (model.name, index): draw.to_picture(decode(latents[place][None])[0])
            for place, index in enumerate(chosen[: unit.count])
        }

    return painted


def _worker(make: Callable[[Params, Files], Painter], params: Params, files: Files, *_) -> Work:
    """What a worker does with units; the result is a file."""
    draw = make(params, files)

    def work(unit: Unit) -> Iterator[int | Done]:
        painted = draw(unit, lambda: None)
        yield pictures(params.sample)[unit.chosen[0]].steps
        path = store.root() / "drawn" / f"{uuid.uuid4().hex}.npz"
        store.keep(path, partial(_write, painted))
        yield Done([path])

    return work


def _write(painted: Painted, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{f"{index} {model}": pixels for (model, index), pixels in painted.items()})


def _taken(made: Path | Away) -> Painted:
    """Raises Gone."""
    if isinstance(made, Away):
        content = made.read().tobytes()
    else:
        content = made.read_bytes()
        made.unlink()
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        named = {tuple(name.split(" ", 1)): arrays[name] for name in arrays.files}
    return {(model, int(index)): pixels for (index, model), pixels in named.items()}

"""Pictures drawn while training: prompts of one's own (train.previews), or the first held-out captions of the cache.
Always from the same noise."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pipeline.device

import mindspore as ms
import numpy as np
from mindspore import nn
from PIL import Image

from pipeline import params, store
from pipeline.cache.reading.reader import Reader
from pipeline.models.config import SDXLConfig
from pipeline.models.encode import vae_decoder
from pipeline.models.graphs import compiled
from pipeline.sampling import draw
from pipeline.sampling.picture import Picture, batches

COUNT = 4  # held-out captions, and pictures drawn at once
STEPS, GUIDANCE, SEED = 20, 5.0, 0  # where a preview says no other
RESCALE = 0.7  # with a zero terminal SNR, without which guided pictures are too bright (arXiv 2305.08891, 3.4)


def previews(prompts: Sequence[str | params.Prompt], reader: Reader) -> tuple[list[Picture], draw.Text, draw.Text]:
    """The pictures of train.previews, of no size of their own in the bucket of most pictures; their texts, and their
    negative texts, zeros where they have none."""
    sizes, counts = np.unique(reader.buckets, axis=0, return_counts=True)
    width, height = (int(side) for side in sizes[counts.argmax()])
    shared = {"width": width, "height": height, "steps": STEPS, "guidance_scale": GUIDANCE, "seed": SEED}
    found = []
    for number, prompt in enumerate(prompts):
        own = {"prompt": prompt} if isinstance(prompt, str) else prompt.model_dump(exclude_none=True)
        number = 0 if "seed" in own else number
        found.append(Picture(**({"negative_prompt": None, "number": number} | shared | own)))
    text = _in_float32(reader.read_texts([one.prompt for one in found]))
    nothing = found[0].prompt  # any text, in the place of zeros
    avoided = [nothing if one.negative_prompt is None else one.negative_prompt for one in found]
    negative = _in_float32(reader.read_texts(avoided))
    for number, one in enumerate(found):
        if one.negative_prompt is None:
            for values in negative:
                values[number] = 0
    return found, text, negative


def held_out(reader: Reader, samples: np.ndarray) -> tuple[list[Picture], draw.Text, draw.Text]:
    """As `previews`, of the captions of up to COUNT of the `samples`, all of the bucket of the first."""
    chosen = samples[(reader.buckets[samples] == reader.buckets[samples[0]]).all(1)][:COUNT]
    width, height = (int(side) for side in reader.buckets[chosen[0]])
    text = _in_float32(reader.still_texts(chosen))
    found = [Picture("", None, width, height, STEPS, GUIDANCE, SEED, number) for number in range(len(chosen))]
    return found, text, tuple(map(np.zeros_like, text))


def _in_float32(text: tuple[np.ndarray, np.ndarray]) -> draw.Text:
    return tuple(np.array(values, np.float32) for values in text)


def painter(
    unet: nn.Cell, config: SDXLConfig, vae: Path, device: pipeline.device.Device, pictures: list[Picture],
    text: draw.Text, negative: draw.Text, texts: Callable[[], tuple[draw.Text, draw.Text]] | None, sampler: str,
    diffusion: params.Diffusion, scaling_factor: float,
) -> Callable[[Path], None]:  # fmt: skip
    """-> function of a path that draws the pictures with the UNet's present weights, side by side, and writes them as a
    PNG. texts: gives both texts as the encoders' present weights have them, where those are trained. The VAE's decoder is
    loaded at the first call."""
    decoders, run = [], compiled(unet, "UNet for pictures")
    rescale = RESCALE if diffusion.zero_terminal_snr else 0.0

    def predict(*arrays: np.ndarray) -> np.ndarray:
        return run(*map(ms.Tensor, arrays)).asnumpy()

    def paint(path: Path) -> None:
        if not decoders:
            decoders.append(vae_decoder(config, vae, device, "float32"))
        unet.set_train(False)
        latents, (now, avoided) = {}, texts() if texts else (text, negative)
        for chosen, count in batches(pictures, COUNT):
            drawn = draw.latents(
                predict, [pictures[index] for index in chosen], tuple(values[chosen] for values in now),
                tuple(values[chosen] for values in avoided), config, sampler, diffusion, rescale,
            )  # fmt: skip
            latents |= zip(chosen[:count], drawn / scaling_factor + diffusion.shift_factor, strict=False)
        unet.set_train()
        drawn = [decoders[0](latents[number][None].astype(np.float32))[0] for number in range(len(pictures))]
        with store.atomic(path) as temporary:
            _side_by_side([draw.to_picture(pixels) for pixels in drawn]).save(temporary, format="PNG")

    return paint


def _side_by_side(pictures: list[np.ndarray]) -> Image.Image:
    """Of (H, W, 3) uint8 of any sizes; black below the lower ones."""
    row = Image.new("RGB", (sum(one.shape[1] for one in pictures), max(one.shape[0] for one in pictures)))
    left = 0
    for one in pictures:
        row.paste(Image.fromarray(one), (left, 0))
        left += one.shape[1]
    return row

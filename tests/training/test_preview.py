"""pipeline/training/preview.py: what is drawn while training."""

import numpy as np
import pytest
from PIL import Image

from pipeline.cache.reading.reader import CacheError, Reader
from pipeline.models.config import TINY
from pipeline.params import Prompt
from pipeline.sampling import draw
from pipeline.sampling.picture import Picture
from pipeline.training import preview
from tests.cache.cache_samples import caption
from tests.sampling import alone
from tests.training.training_samples import params, write_workspace


@pytest.fixture(scope="module")
def outs(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("preview"), buckets=((64, 64), (64, 32), (64, 32))) / "outs"


def reader(outs, texts=()):
    return Reader(outs / "latents", outs / "text", outs / "index/samples.parquet", texts=texts)


def row(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the cache that was written."""
    found = caption(text)
    context = np.frombuffer(found["context"], np.float16).reshape(found["tokens"], found["width"])
    return context, np.frombuffer(found["pooled"], np.float32)


def test_prompts_have_settings_of_their_own(outs):
    prompts = ["picture 3", Prompt(prompt="picture 1", negative_prompt="picture 2", width=96, seed=7, steps=3),
               Prompt(prompt="picture 3", negative_prompt="", guidance_scale=1.5)]  # fmt: skip
    found, text, negative = preview.previews(prompts, reader(outs, ["picture 1", "picture 2", "picture 3", ""]))
    seen = [(p.width, p.height, p.steps, p.guidance_scale, p.seed, p.number) for p in found]
    # the bucket of most pictures; a seed of its own means the same at any place
    assert seen == [(64, 32, 20, 5.0, 0, 0), (96, 32, 3, 5.0, 7, 0), (64, 32, 20, 1.5, 0, 2)]
    for number, name in enumerate(("picture 3", "picture 1", "picture 3")):
        for values, wanted in zip(text, row(name), strict=True):
            np.testing.assert_array_equal(values[number], wanted.astype(np.float32))
    for number, name in enumerate((None, "picture 2", "")):
        for values, wanted in zip(negative, row(name or ""), strict=True):
            np.testing.assert_array_equal(values[number], 0 if name is None else wanted.astype(np.float32))


def test_a_preview_with_weights_has_the_row_with_weights(tmp_path):
    """Written as the cache writes it, under the name that weights give it."""
    outs = write_workspace(tmp_path) / "outs"
    named = {"texts": ["picture 1", "(picture:1.3)"], "emphasis": "a1111"}
    with pytest.raises(CacheError, match="lacks 1 texts of train.previews, the first is '\\(picture:1.3\\)'"):
        Reader(outs / "latents", outs / "text", outs / "index/samples.parquet", **named)
    opened = Reader(
        outs / "latents", outs / "text", outs / "index/samples.parquet", texts=named["texts"][:1], emphasis="a1111"
    )
    np.testing.assert_array_equal(opened.read_texts(["picture 1"])[0][0], row("picture 1")[0])


def test_a_text_that_is_not_encoded_is_named(outs):
    with pytest.raises(
        CacheError, match="lacks 1 texts of train.previews, the first is 'unknown'; run `dvc repro cache_text`"
    ):
        reader(outs, ["picture 1", "unknown"])


def test_held_out_captions_are_of_one_bucket_and_without_guidance_text(outs):
    opened = reader(outs)
    samples = np.arange(opened.n)
    found, text, negative = preview.held_out(opened, samples)
    assert len(found) == preview.COUNT == len(text[0]) and {p.number for p in found} == {0, 1, 2, 3}
    assert {(p.width, p.height) for p in found} == {tuple(opened.buckets[0])}
    assert not any(values.any() for values in negative) and all(values.any() for values in text)


class Formula:
    """In the place of a UNet that is trained, and of its graph."""

    training, factor = True, 0.3

    def set_train(self, mode: bool = True) -> None:
        self.training = mode

    def __call__(self, x_t, timesteps, context, vector):
        assert not self.training
        of_each = context.mean(axis=(1, 2)) + vector.mean(axis=1) + timesteps / 1000
        return np.tanh(self.factor * x_t + of_each.reshape(-1, 1, 1, 1)).astype(np.float32)


class Answer(np.ndarray):
    """As a tensor of MindSpore."""

    def asnumpy(self):
        return np.asarray(self)


@pytest.mark.parametrize(
    ("sampler", "changes", "rescale"),
    [
        ("dpmpp_2m_karras", {}, 0.0),
        ("ddim", {"diffusion.prediction": "v", "diffusion.zero_terminal_snr": True}, 0.7),
        ("euler", {"diffusion.prediction": "flow", "diffusion.flow_shift": 2.5}, 0.0),
    ],
    ids=["karras", "zero_terminal_snr", "flow"],
)
def test_each_picture_is_drawn_by_its_own_settings_and_those_of_the_run(
    monkeypatch, tmp_path, sampler, changes, rescale
):
    diffusion = params(**{"diffusion.shift_factor": 0.3}, **changes).diffusion
    unet, decoded = Formula(), []

    def decode(latents):
        decoded.append(latents)
        return draw.noise(0, 1, (3, 8 * latents.shape[2], 8 * latents.shape[3]))

    monkeypatch.setattr(preview, "vae_decoder", lambda *_: decode)
    monkeypatch.setattr(preview, "compiled", lambda cell, _: lambda *arrays: cell(*arrays).view(Answer))
    monkeypatch.setattr(preview.ms, "Tensor", np.asarray)
    shared = {"steps": 3, "guidance_scale": 5.0, "seed": 0}
    pictures = [
        Picture("a", None, 64, 32, number=0, **shared),
        Picture("b", "c", 96, 32, number=1, **shared | {"steps": 2, "guidance_scale": 2.0}),
        Picture("d", None, 64, 32, number=0, **shared | {"seed": 7}),
    ]
    text = draw.noise(1, 3, (77, 8)), draw.noise(2, 3, (6,))
    negative = tuple(map(np.zeros_like, text))
    negative[0][1], negative[1][1] = 0.5, 0.25
    paint = preview.painter(unet, TINY, None, None, pictures, text, negative, None, sampler, diffusion, 0.26)
    for unet.factor in (0.3, 0.9):  # its weights change while it is trained
        decoded.clear()
        paint(tmp_path / "a.png")
        assert unet.training and Image.open(tmp_path / "a.png").size == (64 + 96 + 64, 32)
        unet.set_train(False)
        for number, one in enumerate(pictures):
            own = [tuple(values[number : number + 1] for values in of) for of in (text, negative)]
            wanted = alone.drawn(unet, one, *own, sampler, diffusion, rescale)
            np.testing.assert_allclose(decoded[number][0], wanted / 0.26 + 0.3, rtol=1e-5, atol=1e-5)


def test_pictures_of_other_sizes_stand_side_by_side():
    row = preview._side_by_side([np.full((2, 3, 3), 9, np.uint8), np.full((4, 5, 3), 7, np.uint8)])
    assert isinstance(row, Image.Image) and row.size == (8, 4)
    pixels = np.array(row)
    assert (pixels[:2, :3] == 9).all() and (pixels[2:, :3] == 0).all() and (pixels[:, 3:] == 7).all()

"""What the repository's tiny model draws: what the prompts say, and what diffusers draws: with an adapter of the UNet and of
both text encoders (tests/golden/make_adapter_pictures.py), and with each sampler and objective (make_setting_pictures.py).
All by the same graphs."""

from collections.abc import Callable

import pipeline.device  # noqa: F401  (before MindSpore)

import numpy as np
import pytest
from mindspore import nn

from demo import check
from demo import pictures as scenes
from pipeline.cache.building.tokens import Tokenizer
from pipeline.diffusion import schedule
from pipeline.models import encode, graphs
from pipeline.models.config import TINY
from pipeline.sampling import draw, euler, paint, prompts, unet
from pipeline.weights.adapters import kinds
from pipeline.weights.convert import convert
from tests.golden import pictures_rule
from tests.project import ROOT
from tests.training import training_samples

GOLDEN = np.load(ROOT / "tests/golden/adapter_pictures.npz")
OF_SETTINGS = np.load(ROOT / "tests/golden/setting_pictures.npz")
WANTED = 40.0  # dB
BATCH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The components of data/base as checkpoints."""
    out = tmp_path_factory.mktemp("base")
    convert(pictures_rule.BASE, pictures_rule.BASE, TINY, out)
    return out


@pytest.fixture(scope="module")
def network(device):
    """unet.make's."""
    return unet.make(TINY.unet, device, "float32")


@pytest.fixture(scope="module", autouse=True)
def encoders():
    """Each compiles once; the next of its kind has its weights in the first one's place."""
    known: dict[str, tuple[nn.Cell, Callable]] = {}

    def compiled(cell: nn.Cell, name: str) -> Callable:
        first, run = known.setdefault(name, (cell, graphs.compiled(cell, name)))
        for own, new in zip(first.get_parameters(), cell.get_parameters(), strict=True):
            own.set_data(new)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "compiled", compiled)
        yield


def test_what_the_prompts_say_in_the_base_style(folder, device, network):
    wanted = [scenes.sample(8, index, "base")[1] for index in range(BATCH)]
    encoder = encode.text_encoder(TINY, folder / "clip_l.ckpt", folder / "clip_g.ckpt", device, "float32")
    (context, pooled), _ = prompts.encode(wanted, [None] * BATCH, Tokenizer(pictures_rule.TOKENIZER), encoder, 1)
    load, predict = network
    load(folder / "unet.ckpt")
    timesteps, sigmas = euler.steps(schedule.alphas_cumprod(False), 20, False)
    x = euler.start(draw.noise(1, len(wanted), (4, 8, 8)), sigmas, False)
    latents = euler.sample(draw.guided(predict, context, pooled, 64, 64, 5.0, "epsilon"), x, timesteps, sigmas)
    decode = encode.vae_decoder(TINY, folder / "vae.ckpt", device, "float32")
    drawn = [draw.to_picture(decode(one[None] / TINY.vae.scaling_factor)[0]) for one in latents]
    found = check.report(drawn, wanted)
    assert found["shape_color"] >= 0.75
    assert found["background_color"] >= 0.75
    assert found["white"] < 0.01


@pytest.fixture(scope="module")
def painter_of(folder, device, network):
    """The sample stage's, with changes of its settings."""

    def make(changes: dict) -> Callable:
        params = training_samples.params(
            **pictures_rule.of(changes), **{"model.tokenizer": str(pictures_rule.TOKENIZER)}
        )
        names = [f"{name}.ckpt" for name in ("unet", "clip_l", "clip_g", "vae")]
        names += [f"{kind}.safetensors" for kind in kinds.KINDS]
        files = [pictures_rule.TOKENIZER, *(folder / name for name in names)]
        draws = paint.painter(params, {str(path): path for path in files})
        return lambda model, chosen, count: draws(paint.Unit(model, chosen, count), lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.device.setup", lambda target: device)  # which a process does once
        patch.setattr(unet, "make", lambda *_: network)
        yield make


@pytest.fixture(scope="module")
def painter(painter_of):
    return painter_of({})


@pytest.mark.parametrize("kind", ["base", *kinds.KINDS])
def test_with_an_adapter_what_diffusers_draws(folder, painter, kind):
    clips, vae = (folder / "clip_l.ckpt", folder / "clip_g.ckpt"), folder / "vae.ckpt"
    model = paint.Model(kind, folder / "unet.ckpt", None, (*clips, None), vae)
    if kind != "base":
        adapter = folder / f"{kind}.safetensors"
        pictures_rule.write(adapter, kind)
        model = paint.Model(kind, adapter, folder / "unet.ckpt", (*clips, adapter), vae)
    count = len(GOLDEN[kind])
    found = painter(model, [*range(count), *[0] * (BATCH - count)], count)
    for number, (theirs, base) in enumerate(zip(GOLDEN[kind], GOLDEN["base"], strict=True)):
        assert psnr(found[kind, number], theirs) >= WANTED, psnr(found[kind, number], theirs)
        # which without the adapter they would not be
        assert kind == "base" or psnr(theirs, base) < WANTED - 10


@pytest.mark.parametrize("name", pictures_rule.SETTINGS)
def test_with_any_settings_what_diffusers_draws(folder, painter_of, name):
    clips, vae = (folder / "clip_l.ckpt", folder / "clip_g.ckpt"), folder / "vae.ckpt"
    model = paint.Model(name, folder / "unet.ckpt", None, (*clips, None), vae)
    count = len(OF_SETTINGS[name])
    found = painter_of(pictures_rule.SETTINGS[name])(model, [*range(count), *[0] * (BATCH - count)], count)
    for number, (theirs, base) in enumerate(zip(OF_SETTINGS[name], OF_SETTINGS["base"], strict=True)):
        # above what two samplers that are no more than alike have to each other, 43 dB
        assert psnr(found[name, number], theirs) >= WANTED + 20, psnr(found[name, number], theirs)
        assert psnr(theirs, base) < WANTED + 5


def test_an_empty_negative_prompt_is_another_picture():
    """Of the golden ones: else those with a negative prompt could be had without."""
    assert psnr(*OF_SETTINGS["own"]) < WANTED - 10


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b).mean()
    return 10 * np.log10(255**2 / error) if error else float("inf")

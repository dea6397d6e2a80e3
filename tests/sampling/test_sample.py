"""The sample stage's parts, with formulas in the networks' places, and the stage itself on a tiny checkpoint."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.cache.building import tokens
from pipeline.diffusion import conditioning, schedule
from pipeline.models.config import TINY
from pipeline.sampling import draw, euler, samplers
from pipeline.sampling.grid import grid
from pipeline.sampling.picture import Picture, batches, pictures
from pipeline.sampling.prompts import encode
from pipeline.sampling.samplers import SAMPLERS
from pipeline.sampling.saved import saved
from pipeline.stage import StageError
from pipeline.weights.convert import convert
from pipeline.weights.merge import merge
from stages import sample as sample_stage
from tests.golden import samplers_rule
from tests.sampling import alone
from tests.training import training_samples
from tests.weights import synthetic

ROOT = Path(__file__).resolve().parents[2]


def test_noise_belongs_to_the_prompts_number():
    few, many = draw.noise(3, 2, (4, 2, 2)), draw.noise(3, 5, (4, 2, 2))
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(few, draw.noise(4, 2, (4, 2, 2)))
    assert draw.noise(-1, 1, (4, 2, 2)).dtype == np.float32
    assert abs(draw.noise(0, 64, (4, 8, 8)).std() - 1) < 0.02


def test_guidance_goes_on_from_zeroed_text_through_the_conditional():
    seen = []

    def unet(x_t, timesteps, context, vector):
        seen.append((x_t, timesteps, context, vector))
        return np.broadcast_to(context.mean(axis=(1, 2)).reshape(-1, 1, 1, 1), x_t.shape)

    context, pooled = np.full((2, 77, 8), 0.5, np.float32), np.full((2, 3), 2, np.float32)
    x = np.ones((2, 4, 2, 2), np.float32)
    sigma = 3.0
    denoise = draw.guided(unet, context, pooled, 64, 96, 5.0, "epsilon")
    # u = 0 and c = 0.5, so the guided noise is 0 + 5 (0.5 - 0)
    np.testing.assert_allclose(denoise(x, sigma, 500), x - sigma * 2.5, rtol=1e-6)

    x_t, timesteps, contexts, vectors = seen[0]
    np.testing.assert_allclose(x_t, np.ones((4, 4, 2, 2)) / np.sqrt(10), rtol=1e-6)
    assert timesteps.tolist() == [500] * 4
    assert not contexts[:2].any() and (contexts[2:] == 0.5).all()
    sizes = np.tile([64, 96, 0, 0, 64, 96], (2, 1))  # height and width; crop top and left; height and width
    np.testing.assert_array_equal(vectors[:2], conditioning.vector(np.zeros((2, 3), np.float32), sizes))
    np.testing.assert_array_equal(vectors[2:], conditioning.vector(pooled, sizes))


def test_a_guidance_scale_of_one_is_the_prompt_alone():
    def unet(x_t, timesteps, context, vector):
        return context.mean(axis=(1, 2)).reshape(-1, 1, 1, 1) + 0 * x_t

    context = np.full((1, 77, 8), 0.25, np.float32)
    x = np.zeros((1, 4, 2, 2), np.float32)
    denoise = draw.guided(unet, context, np.zeros((1, 3), np.float32), 64, 64, 1.0, "epsilon")
    np.testing.assert_allclose(denoise(x, 2.0, 1), -0.5)


def test_negative_prompts_and_scales_belong_to_their_pictures():
    def unet(x_t, timesteps, context, vector):
        return context.mean(axis=(1, 2)).reshape(-1, 1, 1, 1) + 0 * x_t

    context, pooled = np.full((2, 77, 8), 0.5, np.float32), np.zeros((2, 3), np.float32)
    negative = np.stack([np.full((77, 8), 0.25, np.float32), np.zeros((77, 8), np.float32)]), pooled
    x = np.zeros((2, 4, 2, 2), np.float32)
    denoise = draw.guided(unet, context, pooled, 64, 64, np.array([3.0, 2.0]), "epsilon", negative)
    found = denoise(x, 1.0, 1)
    np.testing.assert_allclose(found[0], -(0.25 + 3 * (0.5 - 0.25)))
    np.testing.assert_allclose(found[1], -(0 + 2 * (0.5 - 0)))


def test_rescaled_guidance_is_that_of_diffusers():
    golden = np.load(ROOT / "tests/golden/rescale.npz")
    for share in samplers_rule.RESCALES:
        output, conditional = samplers_rule.outputs()
        np.testing.assert_allclose(draw.rescaled(output, conditional, share), golden[str(share)], rtol=1e-5, atol=1e-6)


def test_rescale_reaches_the_denoiser():
    rng = np.random.default_rng(0)
    u, c = rng.standard_normal((2, 1, 4, 2, 2), np.float32)
    x = np.zeros((1, 4, 2, 2), np.float32)

    def predicted(rescale):
        text = np.zeros((1, 77, 8), np.float32), np.zeros((1, 3), np.float32)
        return -draw.guided(lambda *_: np.concatenate([u, c]), *text, 64, 64, 5.0, "epsilon", rescale=rescale)(
            x, 1.0, 1
        )

    np.testing.assert_allclose(predicted(0.0), u + 5 * (c - u), rtol=1e-6)
    np.testing.assert_allclose(predicted(1.0).std(), c.std(), rtol=1e-5)
    np.testing.assert_allclose(predicted(0.7), 0.7 * predicted(1.0) + 0.3 * predicted(0.0), rtol=1e-4, atol=1e-5)


DIFFUSION = training_samples.params().diffusion


def picture(prompt="", width=64, height=64, steps=20, **own):
    return Picture(**{"negative_prompt": None, "guidance_scale": 5.0, "seed": 0, "number": 0} | own,
                   prompt=prompt, width=width, height=height, steps=steps)  # fmt: skip


@pytest.mark.parametrize(
    "count, size, wanted",
    [(3, 8, [([0, 1, 2], 3)]), (5, 2, [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]), (4, 2, [([0, 1], 2), ([2, 3], 2)])],
)
def test_batches_are_of_one_size(count, size, wanted):
    assert batches([picture()] * count, size) == wanted


def test_batches_have_one_size_and_number_of_steps_and_one_graph_each_size():
    """Seeds, texts and scales may differ."""
    wanted = [picture("a"), picture("b", width=96), picture("c", steps=30), picture("d", seed=3, guidance_scale=1.0)]
    assert batches([*wanted, picture("e", width=96, negative_prompt="f")], 8) == [([0, 3], 2), ([1, 4], 2), ([2, 2], 1)]


def test_a_prompt_takes_what_it_does_not_say_from_the_section():
    own = {
        "prompt": "b",
        "negative_prompt": "c",
        "width": 96,
        "height": 128,
        "steps": 7,
        "guidance_scale": 1.5,
        "seed": 9,
    }
    sample = training_samples.params(**{"sample.prompts": ["a", own, {"prompt": "d", "steps": 3}]}).sample
    first, second, third = pictures(sample)
    shared = (sample.width, sample.height)
    assert (first.prompt, first.negative_prompt, first.width, first.height) == ("a", None, *shared)
    assert (first.steps, first.guidance_scale, first.seed, first.number) == (40, 5.0, 0, 0)
    assert second == Picture(number=0, **own)
    assert third == dataclasses.replace(first, prompt="d", steps=3, number=2)


def test_a_seed_of_its_own_means_the_same_in_any_place():
    for prompts in (["a", "b", {"prompt": "c", "seed": 5}], [{"prompt": "c", "seed": 5}]):
        *_, last = pictures(training_samples.params(**{"sample.prompts": prompts}).sample)
        assert (last.seed, last.number) == (5, 0)
    assert np.array_equal(draw.noise_of(5, 0, (4, 2, 2)), draw.noise(5, 1, (4, 2, 2))[0])


def test_what_a_sampler_adds_is_keyed_by_seed_number_and_step():
    seen = [draw.noise_of(seed, number, (4, 8, 8), step) for seed in (0, 1) for number in (0, 1) for step in (-1, 0, 1)]
    for index, one in enumerate(seen):
        for other in seen[:index]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.3
    assert np.array_equal(seen[1], draw.noise_of(0, 0, (4, 8, 8), 0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_among_others(sampler):
    def unet(x_t, timesteps, context, vector):
        return np.tanh(x_t + context.mean(axis=(1, 2)).reshape(-1, 1, 1, 1)).astype(np.float32)

    wanted = [picture("a", number=0), picture("b", number=1), picture("c", number=0, seed=4, guidance_scale=2.0)]
    text = np.linspace(0, 1, 3 * 77 * 8, dtype=np.float32).reshape(3, 77, 8), np.zeros((3, 3), np.float32)
    zeros = tuple(map(np.zeros_like, text))

    def drawn(chosen):
        of = [tuple(array[chosen] for array in texts) for texts in (text, zeros)]
        return draw.latents(unet, [wanted[index] for index in chosen], *of, TINY, sampler, DIFFUSION, 0.0)

    together = drawn([0, 1, 2])
    for index in range(3):
        np.testing.assert_array_equal(drawn([index])[0], together[index])
    assert not np.array_equal(together[0], together[1])


def test_pixels_are_rounded_and_clipped():
    pixels = np.array([-2, -1, 0, 1, 3], np.float32).reshape(1, 1, 5).repeat(3, axis=0)
    assert draw.to_picture(pixels)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_the_grid_has_a_column_for_each_prompt_and_a_row_for_each_model():
    colors = {"base": (250, 0, 0), "fine-tuned": (0, 0, 250)}
    prompts = [f"prompt number {i} with some words to wrap over lines" for i in range(10)]
    rows = {label: [np.full((64, 64, 3), color, np.uint8)] * 10 for label, color in colors.items()}
    sheet = np.array(grid(rows, prompts))
    assert sheet.shape[1] > 8 * 192
    for color in colors.values():
        assert (sheet == color).all(axis=2).sum() == 10 * 192 * 192
    red, blue = ((sheet == color).all(axis=2).any(axis=1).argmax() for color in colors.values())
    assert red < blue


def test_large_pictures_are_reduced():
    sheet = grid({"a": [np.full((1024, 1024, 3), (250, 0, 0), np.uint8)]}, ["one"])
    assert max(sheet.size) < 500


def test_pictures_of_several_sizes_are_enlarged_alike():
    red = {"a": [np.full(size, (250, 0, 0), np.uint8) for size in ((64, 64, 3), (32, 96, 3))]}
    sheet = np.array(grid(red, ["one", "two"]))
    assert (sheet == (250, 0, 0)).all(axis=2).sum() == 4 * (64 * 64 + 32 * 96)


class Words:
    """A tokenizer of one token a word."""

    begin, end = 1000, 1001

    def __call__(self, text: str) -> list[int]:
        return list(range(len(text.split())))


@pytest.mark.parametrize(
    ("words", "chunks", "said"),
    [
        (75, 1, None),
        (76, 1, "has 78 tokens and was cut at 77 (cache_text.chunks is 1; 2 would hold it"),
        (150, 2, None),
        (151, 2, "has 153 tokens and was cut at 152 (cache_text.chunks is 2; 3 would hold it"),
        (226, 1, "has 228 tokens and was cut at 77 (cache_text.chunks is 1; 3, the most, would not hold it"),
        (226, 3, "has 228 tokens and was cut at 227 (cache_text.chunks is 3; 3, the most, would not hold it"),
    ],
)
def test_a_prompt_that_is_cut_is_named(caplog, words, chunks, said):
    seen = []

    def encoder(ids, ids_2):
        seen.append((ids, ids_2))
        return np.zeros((len(ids), 77, 4), np.float32), np.zeros((len(ids), 3), np.float32)

    (context, pooled), _ = encode(["short", "word " * words], [None, None], Words(), encoder, chunks)
    assert context.shape == (2, 75 * chunks + 2, 4) and pooled.shape == (2, 3)
    kept = seen[1][0][:, 1:-1].reshape(-1)[:words].tolist()
    assert kept == list(range(min(words, 75 * chunks)))
    if said is None:
        assert not caplog.text
    else:
        assert "prompt 1, 'word word" in caplog.text and said in caplog.text and "prompt 0" not in caplog.text
        assert len(caplog.text) < 300


def test_negative_prompts_are_encoded_as_prompts_and_zeros_where_there_is_none(caplog):
    def encoder(ids, ids_2):
        return np.full((len(ids), 77, 4), ids[0, 2], np.float32), np.full((len(ids), 3), ids[0, 2], np.float32)

    texts, negative = encode(["a b c", "a"], [None, "a b"], Words(), encoder, 1)
    assert not negative[0][0].any() and not negative[1][0].any()
    np.testing.assert_array_equal(negative[0][1], encode(["a b"], [None], Words(), encoder, 1)[0][0][0])
    assert negative[0].shape == texts[0].shape and negative[1].shape == texts[1].shape
    empty = encode(["a"], [""], Words(), encoder, 1)[1]
    assert empty[0].any(), "an empty negative prompt is the encoded empty text, not zeros"
    encode(["a"], ["word " * 80], Words(), encoder, 1)
    assert "negative prompt 0, 'word" in caplog.text


def test_prompts_with_weights_are_encoded_as_captions_with_weights(tmp_path):
    """By the same code as the cache's rows, of which test_cache_text has the numbers."""

    def encoder(ids, ids_2):
        hidden = np.stack([ids, ids_2], axis=2).astype(np.float32)
        return hidden, ids[:, :3].astype(np.float32)

    words = ["a b c", "a (b:2) c"]
    plain, _ = encode(words, [None] * 2, Words(), encoder, 1)
    (context, pooled), (negative, _) = encode(words, [None, "[c]"], Words(), encoder, 1, "a1111", 1)
    np.testing.assert_array_equal(context[0], encode(["a b c"], [None], Words(), encoder, 1)[0][0][0])
    assert plain[0].shape == context.shape and not np.array_equal(context[1], context[0])
    ids, weights = tokens.weighted(Words(), "a (b:2) c", "a1111")
    assert (ids, weights) == ([0, 0, 0], [1, 2, 1])
    hidden = encoder(*(tokens.chunk(ids, 1, 1000, 1001, pad) for pad in (1001, 0)))[0]
    times = np.ones((77, 1))
    times[2] = 2
    for channel in (0, 1):
        states = hidden[0, :, channel : channel + 1].astype(np.float64)
        wanted = states * times * (states.mean() / (states * times).mean())
        np.testing.assert_allclose(context[1][:, channel : channel + 1], wanted, rtol=1e-6)
    assert np.array_equal(pooled[1], [1000, 0, 0]) and negative[1].any()


def test_each_model_has_encoders_of_its_own_where_some_are_trained():
    step, merged = Path("outs/train/weights/step-00000300.ckpt"), sample_stage.MERGED
    models = [("base", sample_stage.BASE), (step.stem, step), ("tuned", sample_stage.MERGED)]

    def files(trained, begun=None):
        return [sample_stage.encoders(*model, trained, begun) for model in models]

    of_merged = merged, merged, None
    assert set(files("none")) == {of_merged}
    base = tuple(Path(f"outs/convert/{part}.ckpt") for part in ("clip_l", "clip_g"))
    for trained, wanted in (("clip_l", (step, base[1])), ("clip_g", (base[0], step)), ("both", (step, step))):
        assert files(trained) == [(*base, None), (*wanted, None), of_merged]
    # adapters, on encoders of which one was another file's
    begun = {"unet": Path("start.ckpt"), "clip_l": Path("start.ckpt"), "clip_g": base[1]}
    assert files("clip_l", begun) == [(*base, None), (Path("start.ckpt"), base[1], step), of_merged]


def test_saved_steps_are_found_by_their_number(tmp_path):
    for name in ("step-00000200.ckpt", "step-00000100.ckpt", "unet.ckpt", "step-x.ckpt"):
        (tmp_path / name).write_bytes(b"")
    hundred, two = tmp_path / "step-00000100.ckpt", tmp_path / "step-00000200.ckpt"
    assert saved(tmp_path, "all") == [(100, hundred), (200, two)] == saved(tmp_path, [200, 100])
    assert saved(tmp_path, [200]) == [(200, two)] and saved(tmp_path, []) == []
    with pytest.raises(StageError, match="step 150, 300, and .* holds those of: 100, 200; train.save_interval"):
        saved(tmp_path, [100, 150, 300])
    with pytest.raises(StageError, match="is all and .* holds no weights in between; set train.save_interval"):
        saved(tmp_path / "none", "all")
    with pytest.raises(StageError, match="those of: none"):
        saved(tmp_path / "none", [1])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder that the stage can run in: two models of random weights."""
    root = tmp_path_factory.mktemp("project")
    base = synthetic.write_checkpoint(root / "base.safetensors", TINY, seed=0, dtype="float16")
    other = synthetic.write_checkpoint(root / "other.safetensors", TINY, seed=1, dtype="float16")
    convert(base, base, TINY, root / "outs/convert")
    convert(other, other, TINY, root / "other")
    parts = {part: root / f"outs/convert/{part}.ckpt" for part in ("clip_l", "clip_g", "vae")}
    merge({"unet": root / "other/unet.ckpt", **parts}, TINY, "float16", root / "outs/merge")
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    settings["model"]["tokenizer"] = str(ROOT / "data/tokenizer")
    settings["sample"] |= {"prompts": ["a red circle " * 40, "", "a blue star"], "steps": 2, "batch_size": 2}
    settings["sample"] |= {"width": 64, "height": 32, "saved_steps": [2]}
    settings["train"]["save_interval"] = 2
    (root / "outs/train/weights").mkdir(parents=True)
    shutil.copy(root / "other/unet.ckpt", root / "outs/train/weights/step-00000002.ckpt")
    (root / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


def stage(root: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.sample"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_the_stage_draws_both_models_from_the_same_noise(project):
    done = stage(project)
    assert done.returncode == 0, done.stderr
    assert "prompt 0, 'a red circle a red" in done.stderr and "was cut at 77 (cache_text.chunks is 1" in done.stderr
    out = project / "outs/sample"
    names = sorted(path.name for path in out.iterdir())
    models = ("base", "step-00000002", "tuned")
    assert names == [f"0{number}_{model}.png" for number in range(3) for model in models] + ["grid.png"]
    pictures = {name: np.array(Image.open(out / name)) for name in names}
    sha = {name: hashlib.sha256((project / name).read_bytes()).hexdigest()
           for name in ("base.safetensors", "outs/merge/merged.safetensors")}  # fmt: skip
    for name, model, file in (("00_base", "base", "base.safetensors"),
                              ("02_tuned", "merged", "outs/merge/merged.safetensors")):  # fmt: skip
        text = Image.open(out / f"{name}.png").text["parameters"]
        assert f"Model hash: {sha[file][:10]}, Model: {model}, Prompt number: {int(name[:2])}" in text
        start = "a red circle a red" if name == "00_base" else "a blue star\nNegative prompt: \nSteps: 2, Sampler: Euler, "
        assert text.startswith(start)
        assert "Seed: 0, Size: 64x32" in text
    assert pictures["00_base.png"].shape == (32, 64, 3)
    assert not np.array_equal(pictures["00_base.png"], pictures["00_tuned.png"])
    assert not np.array_equal(pictures["00_base.png"], pictures["02_base.png"])
    assert np.array_equal(pictures["00_step-00000002.png"], pictures["00_tuned.png"])  # of the same weights here
    assert "Model: step-00000002, " in Image.open(out / "00_step-00000002.png").text["parameters"]


KARRAS = {
    "sample.sampler": "dpmpp_2m_karras",
    "sample.guidance_rescale": 0.7,
    "diffusion.scaling_factor": 0.26,
    "diffusion.shift_factor": 0.3,
}
ENDS_IN_NOISE = {"sample.sampler": "ddim", "diffusion.prediction": "v", "diffusion.zero_terminal_snr": True}
FLOW = {"diffusion.prediction": "flow", "diffusion.flow_shift": 2.5}
WEIGHTS = {"cache_text.emphasis": "a1111"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (KARRAS, "Sampler: DPM++ 2M, Schedule type: Karras, {}, CFG Rescale: 0.7, Emphasis: None, {}"),
        (ENDS_IN_NOISE, "Sampler: DDIM, Schedule type: Automatic, {}, Noise Schedule: Zero Terminal SNR, {}"),
        (FLOW, "Sampler: Euler, Schedule type: Automatic, {}, Shift: 2.5, {}"),
        (WEIGHTS, "Sampler: Euler, Schedule type: Automatic, {}, Model: merged, Prompt number: 0"),
    ],
    ids=["karras", "zero_terminal_snr", "flow", "weights of words"],
)
def test_every_setting_reaches_the_stages_pictures(project, monkeypatch, changes, said):
    """With formulas in the networks' places, each picture as it is drawn alone."""
    from pipeline import device
    from pipeline.models import encode as networks
    from pipeline.sampling import grid as sheet
    from pipeline.sampling import unet as unets

    factor = {sample_stage.BASE: 0.1, Path("outs/train/weights/step-00000002.ckpt"): 0.3, sample_stage.MERGED: 0.9}
    loaded, decoded, rows, width_l = [], [], [], TINY.clip_l.width

    def predict(x_t, timesteps, context, vector):
        of_each = (context**2).mean(axis=(1, 2)) + vector.mean(axis=1) + timesteps / 1000
        return np.tanh(loaded[-1] * x_t + of_each.reshape(-1, 1, 1, 1)).astype(np.float32)

    def encoder(ids, ids_2):
        return np.sin(ids[:, :, None] + np.arange(width_l + 8, dtype=np.float32)), np.cos(ids[:, :6]).astype(np.float32)

    def decode(latents):
        decoded.append(latents[0])
        return np.zeros((1, 3, 64, 64), np.float32)

    monkeypatch.chdir(project)
    monkeypatch.setattr(device, "setup", lambda *_: None)
    monkeypatch.setattr(networks, "text_encoder", lambda *_: encoder)
    monkeypatch.setattr(networks, "vae_decoder", lambda *_: decode)
    monkeypatch.setattr(unets, "make", lambda *_: (lambda path, _: loaded.append(factor[path]), predict))
    monkeypatch.setattr(sheet, "grid", lambda found, prompts: (rows.extend(found), grid(found, prompts))[1])
    own = {"prompt": "a (blue:1.5) star", "negative_prompt": "a [square]", "steps": 3, "seed": 5, "guidance_scale": 2.0}
    own |= {"width": 96, "height": 32}
    tokenizer = ROOT / "data/tokenizer"
    shared = {"prompts": ["a circle", own], "saved_steps": [2], "steps": 4, "width": 64, "height": 64}
    shared |= {"guidance_scale": 4.0, "seed": 1, "batch_size": 8}
    p = training_samples.params(
        **{"model.tokenizer": str(tokenizer), "train.save_interval": 2},
        **{f"sample.{key}": value for key, value in shared.items()},
        **changes,
    )
    sample_stage.main(p)

    first = picture("a circle", 64, 64, 4, guidance_scale=4.0, seed=1)
    second = picture(own["prompt"], 96, 32, 3, negative_prompt="a [square]", guidance_scale=2.0, seed=5)
    scale = p.diffusion.scaling_factor or TINY.vae.scaling_factor
    how = tokens.Tokenizer(tokenizer), encoder, 1, p.cache_text.emphasis, width_l
    for index, (model, one) in enumerate((model, one) for model in factor for one in (first, second)):
        loaded.append(factor[model])
        text, negative = encode([one.prompt], [one.negative_prompt], *how)
        drawn = alone.drawn(predict, one, text, negative, p.sample.sampler, p.diffusion, p.sample.guidance_rescale)
        np.testing.assert_allclose(decoded[index], drawn / scale + p.diffusion.shift_factor, rtol=1e-5, atol=1e-5)
    assert len(decoded) == 6 and rows == ["base", "step 2", "fine-tuned"]
    text = Image.open("outs/sample/01_tuned.png").text["parameters"]
    assert text.startswith("a (blue:1.5) star\nNegative prompt: a [square]\nSteps: 3, ")
    for part in said.split(", {}"):
        assert part in text
    assert "CFG scale: 2, Seed: 5, Size: 96x32" in text


def test_an_impossible_size_is_refused_and_nothing_is_written(project, tmp_path):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("width: 64", "width: 40"), encoding="utf-8")
    done = stage(tmp_path)
    assert done.returncode != 0
    assert "sample.width: must be a multiple of 32, found 40" in done.stderr
    assert not (tmp_path / "outs").exists()


@pytest.mark.parametrize(
    "prediction, zero_terminal_snr, shift",
    [("epsilon", False, 1.0), ("v", False, 1.0), ("v", True, 1.0), ("flow", False, 2.5)],
)
def test_the_whole_path_ends_at_the_data_when_the_model_is_right(prediction, zero_terminal_snr, shift):
    """A model that knows its one picture finds it again from any noise, guided or not."""
    alphas = schedule.alphas_cumprod(zero_terminal_snr)
    picture = draw.noise(1, 1, (4, 4, 4))

    def unet(x_t, t, context, vector):
        signal, strength = schedule.mixture(prediction, t if prediction == "flow" else t.astype(int), alphas)
        noise = (x_t - signal * picture) / strength
        return schedule.target(prediction, picture, noise, signal, strength)

    x, timesteps, sigmas = samplers.begin(
        "euler", draw.noise(0, 1, (4, 4, 4)), 40, prediction, zero_terminal_snr, shift
    )
    denoise = draw.guided(unet, np.ones((1, 77, 2), np.float32), np.ones((1, 3), np.float32), 32, 32, 5.0, prediction)
    np.testing.assert_allclose(euler.sample(denoise, x, timesteps, sigmas), picture, atol=1e-3)

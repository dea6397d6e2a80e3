"""The embedded default: pictures, tokenizer, and what the tiny SDXL in data/base can do."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from demo import check, pictures, tokenizer, weights, word
from demo.vae_start import start
from pipeline.cache.building.tokens import Tokenizer
from pipeline.models.config import TINY
from pipeline.weights import layout, safetensors

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "data/base/tiny_sdxl.safetensors"
CAPTION = "a large red circle on the left on a dark blue background"


# Pictures


def test_a_caption_says_what_is_drawn():
    scene = pictures.parse(CAPTION)
    assert scene == pictures.Scene("large", "red", "circle", "on the left", "dark blue")
    picture = pictures.draw(scene, "base", np.random.default_rng(0))
    assert picture.shape == (64, 64, 3)
    red = (np.abs(picture - np.array(pictures.SHAPE_COLORS["red"], float)) < 15).all(axis=2)
    assert red[32, 21] and not red[32, 50]
    assert 0.20 < red.mean() < 0.30  # a circle of radius 18 is a quarter of 64 × 64
    assert np.abs(picture[2, 60] - np.array(pictures.BACKGROUND_COLORS["dark blue"], float)).max() < 10


def test_pictures_of_a_new_word_and_what_is_seen_of_it(tmp_path, monkeypatch, capsys):
    """Half of them with the word, and only those have an outline; the check tells them apart by it."""
    monkeypatch.setattr(word, "COUNT", 8)
    word.write(tmp_path / "words")
    rows = [json.loads(line) for line in (tmp_path / "words/metadata.jsonl").read_text().splitlines()]
    assert [row["text"].startswith("zorp ") for row in rows] == [False, True] * 4
    drawn = [np.array(Image.open(tmp_path / "words" / row["file_name"])) for row in rows]
    assert [check.white_share(one) > 0.03 for one in drawn] == [False, True] * 4
    assert word.WORD not in json.loads((ROOT / "data/tokenizer/vocab.json").read_text())
    prompts = [SimpleNamespace(prompt=row["text"]) for row in rows]
    monkeypatch.setattr(word, "drawn_from", lambda sample: prompts)
    monkeypatch.setattr(word.params, "load", lambda: SimpleNamespace(sample=None))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outs/sample").mkdir(parents=True)
    for number, one in enumerate(drawn):
        Image.fromarray(one).save(f"outs/sample/{number:02d}_tuned.png")
    word.check()
    said, with_word, without = capsys.readouterr().out.splitlines()
    assert "words: 8 pictures with captions, half of them with the word zorp" in said
    assert re.match(r"4 prompts with zorp: near white 0\.[1-9]", with_word) and "shape 100%" in with_word
    assert without == "4 prompts without zorp: near white 0.000, colour of the shape 100%, of the background 100%"


def test_all_captions_are_understood():
    for index in range(200):
        picture, caption = pictures.sample(5, index, "base")
        assert pictures.parse(caption).caption == caption


OTHERS = ["a large red circle", "a red blob on a dark blue background", "a red circle on a blue background", ""]


@pytest.mark.parametrize("caption", OTHERS)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="is not a caption of demo/pictures.py"):
        pictures.parse(caption)


def test_the_same_number_gives_the_same_picture():
    first, again = pictures.sample(5, 3, "sticker"), pictures.sample(5, 3, "sticker")
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    assert not np.array_equal(first[0], pictures.sample(5, 4, "sticker")[0])


def test_white_tells_the_styles_apart_and_colors_are_seen_in_both():
    for style in pictures.STYLES:
        for index in range(60):
            picture, caption = pictures.sample(6, index, style)
            assert check.agrees(picture, caption) == (True, True), caption
            white = check.white_share(picture)
            assert white == 0 if style == "base" else white > 0.05


def test_wrong_colors_are_seen():
    picture, _ = pictures.sample(6, 0, "base")
    shape, background = check.colors(picture)
    color = "red" if shape != "red" else "blue"
    ground = "dark gray" if background != "dark gray" else "light gray"
    other = pictures.Scene("", color, "star", "", ground)
    assert check.agrees(picture, other.caption) == (False, False)
    with pytest.raises(SystemExit, match="sample.prompts: 'a cat' is not a caption of demo/pictures.py, as 'a large red"):
        check.agrees(picture, "a cat")


def test_data_images_are_the_new_style_as_the_script_draws_it():
    from demo.make import IMAGES, SEED

    lines = [json.loads(line) for line in (ROOT / "data/images/metadata.jsonl").read_text().splitlines()]
    assert len(lines) == len(list((ROOT / "data/images").glob("*.png"))) == IMAGES
    for index, line in list(enumerate(lines))[::25]:
        picture = np.array(Image.open(ROOT / "data/images" / line["file_name"]))
        drawn, caption = pictures.sample(SEED, index, "sticker")
        assert np.array_equal(picture, drawn) and line["text"] == caption
        assert check.white_share(picture) > 0.05
        assert check.agrees(picture, line["text"]) == (True, True)


# Tokenizer


def test_merges_are_learnt_by_frequency():
    # "ab" stands 5 times, then "abc" 3 times
    assert tokenizer.learn_merges({"abc</w>": 3, "ab</w>": 2}, 2) == [("a", "b"), ("ab", "c</w>")]
    with pytest.raises(ValueError, match="give 3 merges, 4 are wanted"):
        tokenizer.learn_merges({"abc</w>": 3, "ab</w>": 2}, 4)


def test_the_tokenizer_in_data_is_what_the_script_makes(tmp_path):
    tokenizer.write(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (ROOT / "data/tokenizer" / name).read_bytes()


def test_caption_words_are_one_token_and_any_text_has_tokens():
    encode = Tokenizer(ROOT / "data/tokenizer")
    assert (encode.begin, encode.end) == (1022, 1023)
    assert len(encode(CAPTION)) == len(CAPTION.split())
    assert 0 < max(encode("Ünïcödé 你好 🙂\n\x00 it's 3 o'clock")) < 1022
    assert encode("") == []


# Model


def test_the_checkpoint_is_a_whole_tiny_sdxl():
    tensors = safetensors.read(BASE)
    assert {name: tensor.shape for name, tensor in tensors.items()} == layout.shapes(TINY)
    assert {tensor.dtype for tensor in tensors.values()} == {"float16"}
    assert BASE.stat().st_size <= 20_000_000


def test_a_wrong_set_of_tensors_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="tensors are not those of the layout"):
        weights.save(tmp_path / "x.safetensors", weights.initial("vae"))
    assert not list(tmp_path.iterdir())


def test_text_encoders_are_those_that_the_script_makes():
    base = weights.load(BASE)
    for name, value in (weights.initial("clip_l") | weights.initial("clip_g")).items():
        assert np.array_equal(base[name], value.astype(np.float16).astype(np.float32)), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The components of data/base as checkpoints."""
    from pipeline.weights.convert import convert

    out = tmp_path_factory.mktemp("base") / "convert"
    convert(BASE, BASE, TINY, out)
    return out


def test_the_vae_starts_with_the_mean_color_of_each_block(device):
    import mindspore as ms

    from demo.vae import to_pixels
    from pipeline.models.vae import VAEDecoder, VAEEncoder

    encoder, decoder = VAEEncoder(TINY.vae), VAEDecoder(TINY.vae)
    own = dict(encoder.parameters_and_names()) | dict(decoder.parameters_and_names())
    for name, value in start({name: p.asnumpy() for name, p in own.items()}, TINY.vae).items():
        own[name].set_data(ms.Tensor(value))
    flat = np.array([[200, 30, 90], [20, 120, 250]], np.uint8)
    pixels = to_pixels(np.broadcast_to(flat[:, None, None], (2, 64, 64, 3)))
    moments = encoder(ms.Tensor(pixels))
    np.testing.assert_allclose(moments.asnumpy()[:, :3], pixels[:, :, ::8, ::8], atol=0.02)
    again = decoder(moments[:, :4]).asnumpy()
    inside = (..., slice(16, -16), slice(16, -16))  # zeros beyond the edges darken or lighten the outer blocks
    np.testing.assert_allclose(again[inside], pixels[inside], atol=0.02)


def test_the_vae_reconstructs_pictures_that_it_has_not_seen(folder, device):
    from demo.vae import held_out_pictures, psnr, to_pixels
    from pipeline.models.encode import vae_decoder, vae_encoder

    images = held_out_pictures(32)
    moments = vae_encoder(TINY, folder / "vae.ckpt", device, "float32")(to_pixels(images))
    latents = moments[::2, :4] * TINY.vae.scaling_factor  # of the base style
    assert np.abs(latents.mean(axis=(0, 2, 3))).max() < 0.25
    assert np.abs(latents.std(axis=(0, 2, 3)) - 1).max() < 0.25
    decibels = psnr(images, vae_decoder(TINY, folder / "vae.ckpt", device, "float32")(moments[:, :4]))
    assert decibels.mean() >= 27
    assert decibels.min() >= 21

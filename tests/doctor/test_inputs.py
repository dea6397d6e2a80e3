"""The doctor on what a run reads: weights, tokenizer, pictures and captions."""

import shutil

import numpy as np
import pytest

from pipeline.data import far
from pipeline.doctor import inputs
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, look
from pipeline.weights.adapters.file import write
from tests.data import data_sets, far_servers
from tests.doctor.doctor_samples import only, sdxl
from tests.training.training_samples import ROOT, params
from tests.weights import synthetic


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from pipeline.models.config import TINY

    return synthetic.write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors", TINY)


def weights(path, **changes):
    model = {"model.base": str(path), "model.vae": str(path)}
    return only(look("weights", inputs.weights, params(**model | changes)))


def test_weights_that_fit(tiny):
    found = weights(tiny)
    assert found.state == GOOD and "is tiny: 9,912,316 parameters, float16" in found.found


def test_weights_that_are_missing_or_of_another_kind(tiny, tmp_path):
    assert "nowhere.safetensors does not exist" in weights("nowhere.safetensors").found
    file = "sd_xl_base_1.0.safetensors"
    published = weights(f"data/here/{file}").do
    assert f"`hf download stabilityai/stable-diffusion-xl-base-1.0 {file} --local-dir data/here`" in published
    found = only(look("weights", inputs.weights, sdxl(model__base=str(tiny), model__vae=str(tiny))))
    assert found.state == BAD and "holds weights of the configuration tiny; set model.config to tiny" in found.found
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>")
    assert weights(tmp_path / "page.safetensors").state == BAD
    (tmp_path / "cut.safetensors").write_bytes(tiny.read_bytes()[:-100])
    assert weights(tmp_path / "cut.safetensors").state == BAD
    (tmp_path / "pickled.ckpt").write_bytes(b"\x80\x02}q\x00.")
    assert weights(tmp_path / "pickled.ckpt").state == BAD
    assert weights(tiny, **{"model.vae": str(tmp_path / "page.safetensors")}).state == BAD


def test_loras_that_fit_and_that_do_not(tiny, tmp_path):
    folder = {"model.lora_folder": str(tmp_path), "model.loras": [{"path": "a.safetensors"}]}
    assert "a.safetensors does not exist; wanted an adapter" in weights(tiny, **folder).found
    shutil.copy(tiny, tmp_path / "a.safetensors")
    found = weights(tiny, **folder)
    assert found.state == BAD and "a.safetensors is not an adapter of this model.config" in found.found
    layer, ones = "lora_unet_out_2", np.ones((4, 1), np.float32)
    parts = {f"{layer}.lora_up.weight": ones, f"{layer}.lora_down.weight": np.ones((1, 32, 3, 3), np.float32)}
    write(tmp_path / "a.safetensors", parts, {layer: 1.0}, {})
    assert weights(tiny, **folder).found.endswith("float16, with a.safetensors")
    absent = weights(tiny, **{"model.lora_folder": str(tmp_path / "none")})
    assert absent.state == BAD and "none is no folder" in absent.found


def test_another_start_of_training_is_looked_at(tiny, tmp_path):
    start = {"train.init_from": str(tmp_path / "start.safetensors")}
    absent = weights(tiny, **start)
    assert absent.state == BAD and "start.safetensors" in absent.found and "train.init_from" in absent.found
    shutil.copy(tiny, tmp_path / "start.safetensors")
    assert weights(tiny, **start).state == GOOD
    (tmp_path / "start.safetensors").write_text("<!DOCTYPE html><html>")
    assert weights(tiny, **start).state == BAD


def test_weights_print_nothing_of_their_own(tiny, capsys):
    weights(tiny)
    assert capsys.readouterr().out == ""


def test_tokenizers(tmp_path):
    found = params(**{"model.tokenizer": str(ROOT / "data/tokenizer")})
    assert only(inputs.tokenizer(found)).state == GOOD
    absent = only(look("tokenizer", inputs.tokenizer, params(**{"model.tokenizer": str(tmp_path)})))
    assert absent.state == BAD and "no vocab.json and no merges.txt" in absent.found
    assert f"`hf download openai/clip-vit-large-patch14 vocab.json merges.txt --local-dir {tmp_path}`" in absent.found
    other = only(look("tokenizer", inputs.tokenizer, sdxl(model__tokenizer=str(ROOT / "data/tokenizer"))))
    assert other.state == BAD and "1024 tokens and the text encoders of model.config sdxl-base know" in other.found


def data(path, settings=params, **changes):
    key = "data.images" if settings is params else "data__images"
    return look("data", inputs.data, settings(**{key: str(path)} | changes))


def test_data_that_is_right(tmp_path):
    files = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(20)} | {f"{n}.txt": "a caption" for n in range(20)}
    pictures, captions = data(data_sets.write_folder(tmp_path / "a", files))
    assert pictures.state == captions.state == GOOD and "20 pictures" in pictures.found
    assert "16 decoded" in pictures.found and "such as 'a caption'" in captions.found


def test_data_that_is_not(tmp_path):
    assert "no such folder" in only(data(tmp_path / "nowhere")).found
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in only(data(tmp_path / "empty")).found
    broken = data_sets.write_folder(tmp_path / "broken", {f"{n}.png": b"no picture" for n in range(4)})
    pictures, captions = data(broken)
    assert pictures.state == captions.state == BAD
    assert "of 4 decoded 4 are rejected" in pictures.found and "0 of these 4 pictures have captions" in captions.found
    assert "name.txt beside name.png" in captions.do


@pytest.mark.parametrize("images", ["hf://datasets/owner/name@main/data", "https://host/{00..99}.tar"])
def test_data_that_dvc_cannot_watch(images):
    finding = only(data(images))
    assert finding.state == BAD and f"data.images is {images}; wanted what DVC can watch" in str(finding)
    assert "into a file such as data/web.urls" in finding.do


def test_far_data_that_is_there_and_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(far, "WAITS", 0.01)
    tar = data_sets.write_tar(tmp_path / "0.tar", {"a.png": data_sets.picture(0, 64, 64), "a.txt": "a caption"})
    with far_servers.web({"0.tar": tar.read_bytes()}) as root:
        pictures, captions = data(f"{root}/0.tar")
        assert pictures.state == captions.state == GOOD and "1 decoded" in pictures.found
        missing = only(data(f"{root}/1.tar"))
    assert missing.state == BAD and "1.tar cannot be found: it is not there" in missing.found


def test_pictures_that_are_too_small_name_the_keys_and_a_preset_where_one_helps(tmp_path):
    small = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(8)} | {f"{n}.txt": "x" for n in range(8)}
    pictures, _ = data(data_sets.write_folder(tmp_path / "small", small), sdxl)
    assert pictures.state == BAD and "8 too small" in pictures.found
    assert "index.min_side" in pictures.do and "make preset" not in pictures.do  # they are the preset's settings
    pictures, _ = data(tmp_path / "small", sdxl, index__resolution=768)
    assert pictures.state == BAD and "index.min_side" in pictures.do and "make preset NAME=" in pictures.do


def test_one_bad_picture_and_one_without_a_caption_are_looked_at(tmp_path):
    files = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(12)} | {f"{n}.txt": "x" for n in range(11)}
    files["11.png"] = b"no picture"
    states = [finding.state for finding in data(data_sets.write_folder(tmp_path / "some", files))]
    assert states == [DOUBTFUL, DOUBTFUL]

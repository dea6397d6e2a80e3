"""The diffusers folder layout against a folder that diffusers and transformers made of the same values
(tests/golden/make_diffusers_folder.py), tensor by tensor and bit by bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import CLIPConfig, SDXLConfig, UNetConfig, VAEConfig
from pipeline.stage import StageError
from pipeline.weights import layout
from pipeline.weights.source import open_weights
from tests.weights import synthetic

FOLDER = Path(__file__).parents[1] / "golden" / "diffusers_folder"
SMALL = SDXLConfig(  # as in make_diffusers_folder.py, which cannot be imported without PyTorch
    unet=UNetConfig(4, (1, 2, 3), (0, 1, 2), context_dim=24, vector_dim=40, head_dim=4, norm_groups=2),
    vae=VAEConfig(channels=4, channel_mult=(1, 2, 2, 4), num_res_blocks=2, norm_groups=2),
    clip_l=CLIPConfig(width=8, layers=2, heads=2, vocab_size=32),
    clip_g=CLIPConfig(width=16, layers=2, heads=2, vocab_size=32, projection_dim=12),
)
LOGIT_SCALE = "conditioner.embedders.1.model.logit_scale"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "sdxl"))


def check(tensors, wanted=lambda name: True):
    shapes = layout.shapes(SMALL)
    assert list(tensors) == list(shapes)
    for name, tensor in tensors.items():
        if wanted(name):
            assert (tensor.dtype, tensor.shape) == ("float16", shapes[name])
            expected = synthetic.bits(name, shapes[name], "float16")
            np.testing.assert_array_equal(tensor.array(), expected, err_msg=name)
            assert b"".join(map(bytes, tensor.chunks())) == expected.tobytes()


def test_every_tensor_comes_out_as_stability_has_it():
    """The UNet lies in shards; logit_scale, which diffusers drops, is ln 100."""
    tensors = open_weights(FOLDER, FOLDER, SMALL)
    check(tensors)
    assert tensors[LOGIT_SCALE].array() == np.float16(4.6055)  # as sd_xl_base_1.0 has it in float16


def test_fp16_file_names(folder):
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.fp16.safetensors")
    for encoder in ("text_encoder", "text_encoder_2"):
        (folder / encoder / "model.safetensors").rename(folder / encoder / "model.fp16.safetensors")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors.index.json")
    check(open_weights(folder, folder, SMALL))


def test_newer_fp16_index_name(folder):
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.rename(folder / "unet/diffusion_pytorch_model.safetensors.index.fp16.json")
    check(open_weights(folder, folder, SMALL))


def test_older_vae_attention_names(folder):
    """diffusers before 0.15: query, key, value, proj_attn; and 1x1 convolutions where it has Linear now."""
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {}
    for name, array in safetensors.numpy.load_file(file).items():
        if "mid_block.attentions" in name:
            for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                name = name.replace(f".{new}.", f".{before}.")
            array = array[:, :, None, None] if array.ndim == 2 else array
        old[name] = array
    safetensors.numpy.save_file(old, file)
    check(open_weights(folder, folder, SMALL))


def test_position_ids_of_older_exports_are_dropped(folder):
    file = folder / "text_encoder/model.safetensors"
    arrays = safetensors.numpy.load_file(file) | {"text_model.embeddings.position_ids": np.arange(77)[None]}
    safetensors.numpy.save_file(arrays, file)
    check(open_weights(folder, folder, SMALL))


@pytest.mark.parametrize("encoders", [["text_encoder"], ["text_encoder", "text_encoder_2"]])
def test_text_encoders_as_transformers_5_6_names_them(folder, encoders, capsys):
    """CLIPTextModel has lost its text_model.; what has both names, layer by layer, is as good."""
    for mixed in (True, False):
        for encoder in encoders:
            file = folder / encoder / "model.safetensors"
            arrays = safetensors.numpy.load_file(file)
            cut = {n: n.removeprefix("text_model.") if "mlp" in n or not mixed else n for n in arrays}
            assert set(cut.values()) != set(arrays) or not mixed
            safetensors.numpy.save_file({cut[name]: array for name, array in arrays.items()}, file)
        check(open_weights(folder, folder, SMALL))
    assert "further" not in capsys.readouterr().out


def test_further_tensors_of_a_folder_are_named(folder, capsys):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    more = {"ztsnr": np.zeros(0, np.float32), "count": np.zeros(1, np.int64)}
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | more, file)
    check(open_weights(folder, folder, SMALL))
    said = capsys.readouterr().out
    assert "1 marks of the objective:\n    vae/ztsnr" in said and "1 others:\n    vae/count I64 (1)" in said


@pytest.mark.parametrize("form", ["whole folder", "vae folder", "vae file"])
def test_a_diffusers_vae_replaces_the_bases_own(tmp_path, form):
    base = synthetic.write_checkpoint(tmp_path / "base.safetensors", SMALL, seed=9)
    path = {
        "whole folder": FOLDER,
        "vae folder": FOLDER / "vae",
        "vae file": FOLDER / "vae/diffusion_pytorch_model.safetensors",
    }
    tensors = open_weights(base, path[form], SMALL)
    check(tensors, wanted=lambda name: name.startswith("first_stage_model."))
    for name in ("model.diffusion_model.out.2.weight", LOGIT_SCALE):
        np.testing.assert_array_equal(
            tensors[name].array(), synthetic.bits(name, tensors[name].shape, "float16", seed=9)
        )


def test_faults_are_named_as_the_folder_names_them(folder):
    file = folder / "text_encoder_2/model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    arrays["text_projection.weight"] = arrays["text_projection.weight"].T.copy()
    del arrays["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    arrays["text_model.extra"] = np.zeros((2, 3), np.float32)
    safetensors.numpy.save_file(arrays, file)
    with pytest.raises(StageError) as error:
        open_weights(folder, folder, SMALL)
    message = str(error.value)
    assert "1 missing:\n    text_encoder_2/text_model.encoder.layers.1.self_attn.k_proj.bias (16)" in message
    assert "1 unknown:\n    text_encoder_2/text_model.extra float32 (2, 3)" in message
    assert "1 of another shape:\n    text_encoder_2/text_projection.weight (16, 12), wanted (12, 16)" in message


def test_parts_of_one_tensor_need_one_dtype(folder):
    file = folder / "text_encoder_2/model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    arrays[name] = arrays[name].astype(np.float32)
    safetensors.numpy.save_file(arrays, file)
    with pytest.raises(StageError, match="wanted one dtype.*layers.0.self_attn.v_proj.weight float32"):
        open_weights(folder, folder, SMALL)


def test_pickled_weights_alone_are_named_and_not_read(folder):
    shutil.rmtree(folder / "vae")
    (folder / "vae").mkdir()
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(b"PK\3\4")
    with pytest.raises(StageError, match=r"vae has pickled weights only \(diffusion_pytorch_model.bin\).*not read"):
        open_weights(folder, folder, SMALL)


def test_a_missing_folder_and_a_missing_shard_are_named(folder):
    shard = next((folder / "unet").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(StageError, match=f"names files that are not there: {shard.name}"):
        open_weights(folder, folder, SMALL)
    shutil.rmtree(folder / "unet")
    with pytest.raises(StageError, match="unet does not exist; wanted diffusion_pytorch_model.safetensors"):
        open_weights(folder, folder, SMALL)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_an_unsound_index_is_refused(folder, content):
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(StageError, match="is not an index"):
        open_weights(folder, folder, SMALL)


def test_a_shard_that_does_not_hold_what_the_index_says_is_refused(folder):
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].pop("conv_in.bias")
    index.write_text(json.dumps(content))
    with pytest.raises(StageError, match="does not hold the tensors .*conv_in.bias"):
        open_weights(folder, folder, SMALL)

"""LoRAs merged into the base on the way in (model.loras): against PEFT's and LyCORIS' own merging of files that diffusers
and LyCORIS wrote (tests/golden/make_loras.py), and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, diffusers, layout, provenance
from pipeline.weights.adapters import file, kinds
from pipeline.weights.convert import convert
from pipeline.weights.names import PREFIX, part_of, to_mindspore
from tests.golden.rule import probe
from tests.project import ROOT
from tests.weights import synthetic
from tests.weights.test_diffusers import SMALL

FOLDER = ROOT / "tests/golden/loras"
WEIGHTS = {"diffusers": 1.0, "lora": 0.7, "lokr": 1.0}  # as make_loras.py has them


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """make_loras.py's base in one file, as float32."""
    arrays = {name: synthetic.bits(name, s, "float16").astype(np.float32) for name, s in layout.shapes(SMALL).items()}
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return synthetic.write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", TINY)


def converted(out: Path) -> dict[str, np.ndarray]:
    """By MindSpore's names."""
    return {name: t.array() for part in PREFIX for name, t in ckpt.read(out / f"{part}.ckpt").items()}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_merged_weights_are_pefts_and_lycoris(small, tmp_path, name):
    convert(small, small, SMALL, tmp_path / "convert", [(FOLDER / f"{name}.safetensors", WEIGHTS[name])])
    found = converted(tmp_path / "convert")
    golden = np.load(FOLDER / "merged.npz")
    wanted = {n.removeprefix(f"{name}:"): p for n, p in zip(golden["names"].tolist(), golden["probes"], strict=True)
              if n.startswith(f"{name}:")}  # fmt: skip
    for stability, shape in layout.shapes(SMALL).items():
        part = part_of(stability)
        recipe = diffusers.recipe(part, stability.removeprefix(PREFIX[part]), shape, SMALL)
        value = found[to_mindspore(stability)]
        before = synthetic.bits(stability, shape, "float16").astype(np.float32)
        names = [f"{diffusers.FOLDER[part]}/{one}" for one in recipe.parts]
        if not any(one in wanted for one in names):
            np.testing.assert_array_equal(value, before, err_msg=stability)
        for one, rows in zip(names, np.split(value, len(names)) if len(names) > 1 else [value], strict=False):
            if one in wanted:
                expected = wanted.pop(one)
                difference = np.abs(probe(one, rows) - expected).max()
                assert difference < 2e-5 * expected[0], (one, difference)
    assert not wanted


LAYER = "lora_unet_input_blocks_4_1_proj_in"
WEIGHT = "model.diffusion_model.input_blocks.4.1.proj_in.weight"


def lora(path: Path, size: float = 1.0, layer: str = LAYER, inputs: int = 64, **changes) -> Path:
    """A LoRA of rank 2 whose product is 2 `size` everywhere."""
    parts = {"lora_down.weight": np.full((2, inputs), size, np.float32), "lora_up.weight": np.ones((64, 2), np.float32)}
    safetensors.numpy.save_file({f"{layer}.{part}": value for part, value in (parts | changes).items()}, path)
    return path


def test_several_add_up_and_keep_the_dtype(tiny, tmp_path, capsys):
    loras = [(lora(tmp_path / "a.safetensors"), 0.5), (lora(tmp_path / "b.safetensors", 3.0), -0.25)]
    convert(tiny, tiny, TINY, tmp_path / "convert", loras)
    found = converted(tmp_path / "convert")
    before = synthetic.bits(WEIGHT, (64, 64), "float16")
    expected = (before.astype(np.float32) + np.float32(1.0 - 1.5)).astype(np.float16)
    np.testing.assert_array_equal(found.pop(WEIGHT), expected)
    for name, shape in layout.shapes(TINY).items():
        if name != WEIGHT:
            np.testing.assert_array_equal(found[to_mindspore(name)], synthetic.bits(name, shape, "float16"))
    said = capsys.readouterr().out
    assert f"{tmp_path}/a.safetensors, times 0.5: 1 tensors of unet" in said


def test_a_lora_of_the_unet_leaves_the_other_components_the_same_bytes(tiny, tmp_path):
    convert(tiny, tiny, TINY, tmp_path / "a")
    convert(tiny, tiny, TINY, tmp_path / "b", [(lora(tmp_path / "a.safetensors"), 1.0)])
    same = {p: (tmp_path / f"a/{p}.ckpt").read_bytes() == (tmp_path / f"b/{p}.ckpt").read_bytes() for p in PREFIX}
    assert same == {"unet": False, "clip_l": True, "clip_g": True, "vae": True}


def test_sources_say_it(tiny, tmp_path):
    path = lora(tmp_path / "a.safetensors")
    convert(tiny, tiny, TINY, tmp_path / "convert", [(path, 0.5)])
    origin = provenance.read(tmp_path / "convert" / provenance.SOURCES, "convert")
    assert origin["loras"] == [{"name": "a.safetensors", "sha256": provenance.sha256(path), "weight": 0.5}]
    assert json.loads(provenance.of_base(origin)["loras"]) == origin["loras"]
    assert provenance.base_title(origin) == "tiny + a 0.5" and provenance.base_sha256(origin) is None
    convert(tiny, tiny, TINY, tmp_path / "plain")
    plain = provenance.read(tmp_path / "plain" / provenance.SOURCES, "convert")
    assert plain.keys() == {"base", "vae"} and provenance.base_sha256(plain) == provenance.sha256(tiny)


def refused(tiny, tmp_path, path: Path, match: str, weight: float = 1.0) -> None:
    with pytest.raises(StageError, match=match) as error:
        convert(tiny, tiny, TINY, tmp_path / "outs/convert", [(path, weight)])
    assert str(path) in str(error.value)
    assert not (tmp_path / "outs").exists() or not list((tmp_path / "outs").iterdir())


def test_numbers_that_are_none(tiny, tmp_path):
    down = np.full((2, 64), 1.0, np.float32)
    down[0, 3] = np.nan
    path = lora(tmp_path / "a.safetensors", **{"lora_down.weight": down})
    refused(tiny, tmp_path, path, rf"{WEIGHT}: .*a.safetensors holds NaN or infinity for it, in lora_down.weight")


def test_too_large_for_the_bases_dtype(tiny, tmp_path):
    path = lora(tmp_path / "a.safetensors", 1e5)
    refused(tiny, tmp_path, path, rf"{WEIGHT}: too large for float16 with .*a.safetensors; a lower weight")


def test_a_damaged_base_is_told_from_a_damaged_lora(tiny, tmp_path):
    arrays = safetensors.numpy.load_file(tiny)
    arrays[WEIGHT] = arrays[WEIGHT].copy()
    arrays[WEIGHT][0, 0] = np.nan
    base = tmp_path / "base.safetensors"
    safetensors.numpy.save_file(arrays, base)
    with pytest.raises(StageError, match=f"base.safetensors .*is damaged(.|\n)*{WEIGHT}: 1 NaN") as error:
        convert(base, base, TINY, tmp_path / "convert", [(lora(tmp_path / "a.safetensors"), 1.0)])
    assert "model.loras" not in str(error.value)


def test_files_that_are_no_lora(tiny, tmp_path):
    path = lora(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    refused(tiny, tmp_path, path, "is cut short")
    path.write_bytes(b"PK\3\4" + bytes(1000))
    refused(tiny, tmp_path, path, "pickled PyTorch weights")
    refused(tiny, tmp_path, tmp_path / "none.safetensors", "does not exist; wanted an adapter")
    refused(tiny, tmp_path, tmp_path, "is a folder; wanted an adapter")
    refused(
        tiny, tmp_path, lora(path, layer="lora_unet_down_blocks_9_proj_in"), "down_blocks_9_proj_in, which is no layer"
    )
    refused(
        tiny, tmp_path, lora(path, inputs=32), r"lora_down.weight \(2, 32\).* does not fit a weight of shape \(64, 64\)"
    )
    twice = safetensors.numpy.load_file(lora(path))
    other = "lora_unet_down_blocks_1_attentions_0_proj_in"  # the same layer as diffusers calls it
    twice |= {name.replace(LAYER, other): value for name, value in twice.items()}
    safetensors.numpy.save_file(twice, path)
    refused(tiny, tmp_path, path, f"is the layer of ({other}|{LAYER}); keep one of them")
    lora(path, **{"lora_A.weight": np.ones((2, 64), np.float32)})
    refused(tiny, tmp_path, path, "which is there by another name too")
    safetensors.numpy.save_file({f"{LAYER}.alpha": np.array(1, np.float32)}, path)
    refused(tiny, tmp_path, path, "1 fault:\n.* has no parts but its alpha, wanted those of a LoRA")
    lora(path, layer="lora_te_text_model_encoder_layers_0_mlp_fc1")
    refused(tiny, tmp_path, path, "lora_te_… is of Stable Diffusion 1 or 2, and SDXL's text encoders are lora_te1_")


def test_a_changed_file_is_said(tiny, tmp_path, caplog):
    path = tmp_path / "a.safetensors"
    shapes = kinds.shapes("lora", (64, 64), 2)
    file.write(path, {f"{LAYER}.{part}": np.ones(s, np.float32) for part, s in shapes.items()}, {LAYER: 2.0}, {})
    convert(tiny, tiny, TINY, tmp_path / "a", [(path, 1.0)])
    assert "damaged" not in caplog.text
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    convert(tiny, tiny, TINY, tmp_path / "b", [(path, 1.0)])
    assert f"{path}: the tensors are not those that its header names: it was changed or damaged" in caplog.text


# diffusers' words


NAMES = {
    "unet.mid_block.attentions.0.proj_in": ("lora_A.weight", "lora.down.weight", "lora_A.default.weight"),
    "text_encoder.encoder.layers.0.mlp.fc1": ("lora_linear_layer.down.weight", "lora_A.weight"),  # transformers 5.6
}


@pytest.mark.parametrize(("layer", "down"), [(layer, end) for layer, ends in NAMES.items() for end in ends])
def test_old_and_new_names(tmp_path, layer, down):
    outputs, inputs = (128, 128) if layer.startswith("unet") else (256, 64)
    up = down.replace("down", "up").replace("_A", "_B")
    arrays = {f"{layer}.{down}": np.ones((2, inputs), np.float32), f"{layer}.{up}": np.ones((outputs, 2), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    ((found,),) = file.read(tmp_path / "a.safetensors", TINY).values()
    assert found.parts.keys() == {kinds.DOWN, kinds.UP} and found.alpha is None


def test_attention_processors_of_older_diffusers(tmp_path):
    attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
    arrays = {
        f"{attention}.processor.to_{which}_lora.{side}.weight": np.ones((2, 128)[:: 1 if side == "down" else -1], np.float32)
        for which in ("q", "out") for side in ("down", "up")
    }  # fmt: skip
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1"
    assert set(file.read(tmp_path / "a.safetensors", TINY)) == {f"{block}.to_q.weight", f"{block}.to_out.0.weight"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1", "not a JSON object"), ("[]", "not a JSON object"), ('{"unet.lora_alpha": "8"}', "wanted a number"),
     ('{"unet.lora_alpha": null}', "wanted a number"), ('{"unet.lora_alpha": Infinity}', "wanted a number"), ('{"unet.lora_alpha": true}', "wanted a number")],
)  # fmt: skip
def test_metadata_that_are_none(tmp_path, text, said):
    layer, path = "unet.mid_block.attentions.0.proj_in", tmp_path / "a.safetensors"
    arrays = {
        f"{layer}.lora_A.weight": np.ones((2, 128), np.float32),
        f"{layer}.lora_B.weight": np.ones((128, 2), np.float32),
    }
    safetensors.numpy.save_file(arrays, path, {"lora_adapter_metadata": text})
    with pytest.raises(StageError, match=f"{re.escape(str(path))}.*{said}"):
        file.read(path, TINY)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_pefts_own_names_are_told(tmp_path, prefix):
    """Their alpha lies in another file."""
    layer, path = f"{prefix}mid_block.attentions.0.proj_in", tmp_path / "a.safetensors"
    arrays = {
        f"{layer}.lora_A.weight": np.ones((2, 128), np.float32),
        f"{layer}.lora_B.weight": np.ones((128, 2), np.float32),
    }
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(StageError, match="of PEFT's save_pretrained, .* save it by diffusers' save_lora_weights"):
        file.read(path, TINY)


@pytest.mark.parametrize(
    ("part", "array", "said"),
    [
        ("dora_scale", np.ones((1, 128), np.float32), r"dora_scale \(1, 128\) along the inputs, wanted \(128, 1\)"),
        ("alpha", np.array(2), r"alpha I64 scalar, wanted float32, float16, bfloat16"),
    ],
)
def test_what_is_wrong_with_a_part_is_said(tmp_path, part, array, said):
    layer, path = "lora_unet_middle_block_1_transformer_blocks_0_ff_net_2", tmp_path / "a.safetensors"
    shape = layout.shapes(TINY)["model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"]
    arrays = {
        f"{layer}.lora_down.weight": np.ones((2, shape[1]), np.float32),
        f"{layer}.lora_up.weight": np.ones((shape[0], 2), np.float32),
        f"{layer}.{part}": array if part == "alpha" else np.ones((1, shape[1]), np.float32),
    }
    safetensors.numpy.save_file(arrays, path)
    said = said.replace("(1, 128", f"(1, {shape[1]}").replace("128, 1", f"{shape[0]}, 1")
    with pytest.raises(StageError, match=said):
        file.read(path, TINY)


def test_an_adapter_of_another_model_is_told(tmp_path):
    layer, path = "lora_unet_input_blocks_4_1_proj_in", tmp_path / "a.safetensors"
    arrays = {
        f"{layer}.lora_down.weight": np.ones((4, 640), np.float32),
        f"{layer}.lora_up.weight": np.ones((640, 4), np.float32),
    }
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(StageError, match="is an adapter of model.config sdxl-base, and model.config is tiny; set it"):
        file.read(path, TINY)


def test_kohyas_names_need_no_metadata_of_diffusers(tmp_path):
    path = tmp_path / "a.safetensors"
    layer = "lora_unet_middle_block_1_proj_in"
    arrays = {
        f"{layer}.lora_down.weight": np.ones((2, 128), np.float32),
        f"{layer}.lora_up.weight": np.ones((128, 2), np.float32),
    }
    safetensors.numpy.save_file(arrays, path, {"lora_adapter_metadata": "[1"})
    assert set(file.read(path, TINY)) == {"model.diffusion_model.middle_block.1.proj_in.weight"}

"""Adapter files: names and metadata against those that kohya's scripts and LyCORIS make by their own code
(tests/golden/make_adapter_names.py), and what is refused."""

import gzip
import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import SDXL_BASE, TINY
from pipeline.stage import StageError
from pipeline.training import targets
from pipeline.weights import layout, provenance
from pipeline.weights import safetensors as streamed
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.extract import TARGETS
from pipeline.weights.names import PREFIX
from tests.project import ROOT
from tests.weights import provenance_samples

GOLDEN = json.loads(gzip.decompress((ROOT / "tests/golden/adapter_names.json.gz").read_bytes()))
RANK = 8
UNET = {n.removeprefix(PREFIX["unet"]): s for n, s in layout.shapes(SDXL_BASE).items() if n.startswith(PREFIX["unet"])}
DEFAULT = list(TARGETS)  # those of params.yaml: tests/test_preset.py
# what LyCORIS' presets for SDXL leave out
WITHOUT = {"time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.2"}


def names(kind: str, patterns: list[str]) -> dict[str, list[int]]:
    found = {}
    for target in targets.targets(UNET, patterns, ()):
        layer = file.layer_name(target)
        found[f"{layer}.{kinds.ALPHA}"] = []
        for part, shape in kinds.shapes(kind, UNET[target], RANK).items():
            found[f"{layer}.{part}"] = list(shape)
    return found


def test_a_lora_by_default_has_the_names_and_shapes_of_kohyas():
    assert names("lora", DEFAULT) == GOLDEN["names"]["lora"]


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_the_others_have_those_of_lycoris(kind):
    left_out = tuple(file.layer_name(layer) + "." for layer in WITHOUT)
    found = {name: shape for name, shape in names(kind, ["*"]).items() if not name.startswith(left_out)}
    assert found == GOLDEN["names"][kind]


@pytest.mark.parametrize(("kind", "golden"), [("lora", "texts"), ("lokr", "texts_lokr")])
def test_those_of_text_encoders_are_kohyas_and_lycoris(kind, golden):
    """All but those in CLIP-L's last block, which SDXL does not use: there they never change from what does nothing."""
    found = {}
    for part in ("clip_l", "clip_g"):
        for target, weight in targets.text_targets(part, SDXL_BASE).items():
            layer = file.layer_name(target, part)
            found[f"{layer}.{kinds.ALPHA}"] = []
            for one, shape in kinds.shapes(kind, weight, RANK).items():
                found[f"{layer}.{one}"] = list(shape)
    unused = "lora_te1_text_model_encoder_layers_11_"
    assert found == {name: shape for name, shape in GOLDEN["names"][golden].items() if not name.startswith(unused)}
    assert sum(name.startswith(unused) for name in GOLDEN["names"][golden]) >= 6 * 3


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_metadata_are_kohyas(kind, monkeypatch):
    run = provenance_samples.run(**{"train.adapter": kind, "train.rank": 8, "train.alpha": 4.0})
    base = {"name": "sd_xl_base_1.0.safetensors", "file": True, "sha256": "e" * 64}
    run["description"]["origin"] = {"base": base, "vae": base, "config": "sdxl-base", "resolution": 1024}
    found = provenance.adapter_metadata(run, "raw", "float16")
    assert {key for key in found if key.startswith("ss_")} <= set(GOLDEN["ss"])
    for key in ("architecture", "implementation", "resolution", "sai_model_spec", "prediction_type"):
        assert found[f"modelspec.{key}"] == GOLDEN["modelspec"][f"modelspec.{key}"]
    assert found["ss_network_module"] == ("networks.lora" if kind == "lora" else "lycoris.kohya")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("8", "4.0")
    assert found["ss_sd_model_name"] == base["name"] and found["ss_new_sd_model_hash"] == base["sha256"]
    arguments = json.loads(found.get("ss_network_args", "{}"))
    assert arguments.get("algo", "lora") == ("lora" if kind == "dora" else kind)
    assert (arguments.get("dora_wd") == "True") == (kind == "dora")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # another than when the training was named
    assert "modelspec.date" not in provenance.adapter_metadata(run, "raw", "float16")
    run["description"]["origin"]["date"] = provenance.date()
    assert provenance.adapter_metadata(run, "raw", "float16")["modelspec.date"] == "2023-11-14T22:13:20Z"


def adapter(
    kind: str, config=TINY, module: str = "input_blocks.4.1.proj_in", dtype=np.float32
) -> dict[str, np.ndarray]:
    shape = layout.shapes(config)[f"{PREFIX['unet']}{module}.weight"]
    draw = np.random.default_rng(0)
    shapes = kinds.shapes(kind, shape, 4)
    return {f"{file.layer_name(module)}.{part}": draw.standard_normal(s).astype(dtype) for part, s in shapes.items()}


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_written_is_read(tmp_path, kind, dtype):
    parts, layer = adapter(kind, dtype=dtype), "lora_unet_input_blocks_4_1_proj_in"
    file.write(tmp_path / "a.safetensors", parts, {layer: 3.0}, {"ss_steps": "7"})
    seen = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert seen.keys() == parts.keys() | {f"{layer}.alpha"}
    assert all(seen[name].dtype == dtype and np.array_equal(seen[name], value) for name, value in parts.items())
    assert seen[f"{layer}.alpha"].shape == () and seen[f"{layer}.alpha"] == 3
    metadata = streamed.metadata(tmp_path / "a.safetensors")
    digest = streamed.data_sha256(tmp_path / "a.safetensors")
    assert metadata["ss_steps"] == "7" and metadata["modelspec.hash_sha256"] == f"0x{digest}"
    # as kohya's addnet_hash_safetensors takes it: of what safetensors itself writes, after the header
    saved = safetensors.numpy.save(seen)
    start = 8 + int.from_bytes(saved[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(saved[start:]).hexdigest() == digest
    (weight,) = file.read(tmp_path / "a.safetensors", TINY).items()
    name, (found,) = weight
    assert name == "model.diffusion_model.input_blocks.4.1.proj_in.weight" and found.alpha == 3 and found.rows is None
    for part, value in found.arrays().items():
        np.testing.assert_array_equal(value, parts[f"{layer}.{part}"].astype(np.float32))


OTHERS = {
    "lora_unet_down_blocks_1_attentions_0_proj_in": ("unet.input_blocks.4.1.proj_in.weight", None),
    "unet.mid_block.attentions.0.proj_out": ("unet.middle_block.1.proj_out.weight", None),
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": ("clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.weight", None),
    "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": (
        "clip_g.model.transformer.resblocks.0.attn.in_proj_weight", (96, 192),
    ),
    "text_encoder_2.text_model.encoder.layers.2.mlp.fc2": ("clip_g.model.transformer.resblocks.2.mlp.c_proj.weight", None),
}  # fmt: skip


@pytest.mark.parametrize("layer", OTHERS)
@pytest.mark.parametrize("ends", [(".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")])
def test_what_others_call_it(tmp_path, layer, ends):
    name, rows = OTHERS[layer]
    part, _, rest = name.partition(".")
    weight = PREFIX[part] + rest
    outputs, inputs = layout.shapes(TINY)[weight]
    outputs = rows[1] - rows[0] if rows else outputs
    down, up = np.ones((2, inputs), np.float32), np.ones((outputs, 2), np.float32)
    safetensors.numpy.save_file({layer + ends[0]: down, layer + ends[1]: up}, tmp_path / "a.safetensors")
    found = file.read(tmp_path / "a.safetensors", TINY)
    assert list(found) == [weight] and found[weight][0].rows == rows and found[weight][0].alpha is None
    assert found[weight][0].parts.keys() == {kinds.DOWN, kinds.UP}


LAYER = "lora_unet_input_blocks_4_1_proj_in"
ONES = np.ones((4, 64), np.float32)
FAULTS = {
    "no adapter": ({"model.diffusion_model.out.0.weight": ONES}, r"but a model, which model\.base takes:\n(.|\n)*no part of an adapter"),
    "no layer": ({"lora_unet_out_7.lora_up.weight": ONES}, r"for none of its layers is: it was made for another model:\n(.|\n)*no layer of this model.config"),
    "half": ({f"{LAYER}.lora_up.weight": ONES}, r"has the parts lora_up\.weight, wanted"),
    "mixed": ({f"{LAYER}.lora_up.weight": ONES, f"{LAYER}.hada_w1_a": ONES}, "has the parts"),
    "shape": ({f"{LAYER}.lora_up.weight": ONES[:, :4], f"{LAYER}.lora_down.weight": ONES}, "does not fit a weight"),
    "flat": ({f"{LAYER}.lora_up.weight": ONES[0], f"{LAYER}.lora_down.weight": ONES}, "does not fit a weight"),
    "tucker": ({f"{LAYER}.lora_mid.weight": ONES}, "Tucker's form"),
    "alpha": (
        {f"{LAYER}.lora_up.weight": ONES.T, f"{LAYER}.lora_down.weight": ONES, f"{LAYER}.alpha": ONES}, "wanted a number",
    ),
    "no number": (
        {
            f"{LAYER}.lora_up.weight": np.ones((64, 4), np.float32), f"{LAYER}.lora_down.weight": ONES,
            f"{LAYER}.alpha": np.array(np.nan, np.float32),
        },
        r"alpha is nan, wanted a finite number",
    ),
    "ranks": (
        {f"{LAYER}.lora_up.weight": np.ones((64, 4), np.float32), f"{LAYER}.lora_down.weight": np.ones((5, 64), np.float32)},
        "a lora_up.weight of rank 4 and a lora_down.weight of rank 5",
    ),
    "integers": ({f"{LAYER}.lora_up.weight": ONES.astype(np.int32)}, "I32"),
    "empty": ({}, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_adapter_is_refused(tmp_path, fault):
    tensors, said = FAULTS[fault]
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(v) for name, v in tensors.items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(StageError, match=f"a.safetensors is not an adapter of this model.config(.|\n)*{said}"):
        file.read(tmp_path / "a.safetensors", TINY)


def test_one_fault_is_no_faults(tmp_path):
    safetensors.numpy.save_file({"x": ONES}, tmp_path / "a.safetensors")
    with pytest.raises(StageError, match=r"\n  1 fault:\n    x "):
        file.read(tmp_path / "a.safetensors", TINY)
    safetensors.numpy.save_file({"x": ONES, "y": ONES}, tmp_path / "a.safetensors")
    with pytest.raises(StageError, match=r"\n  2 faults:\n    x "):
        file.read(tmp_path / "a.safetensors", TINY)


def test_an_alpha_that_float16_has_not_is_written_whole(tmp_path):
    parts = {f"{LAYER}.lora_up.weight": ONES.T.astype(np.float16), f"{LAYER}.lora_down.weight": ONES.astype(np.float16)}
    for alpha, dtype in ((4.0, "float16"), (3001.0, "float32"), (100_000.0, "float32"), (0.1, "float32")):
        file.write(tmp_path / "a.safetensors", parts, {LAYER: alpha}, {})
        written = safetensors.numpy.load_file(tmp_path / "a.safetensors")[f"{LAYER}.alpha"]
        assert (written.dtype, float(written)) == (dtype, np.float32(alpha))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StageError, match="a.safetensors does not exist"):
        file.read(tmp_path / "a.safetensors", TINY)

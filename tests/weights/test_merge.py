"""The merge stage: the round trip bit by bit, casts, and what it refuses."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pipeline.device  # noqa: F401  (sets what MindSpore reads at its import)

import numpy as np
import pytest
import safetensors.numpy

import mindspore as ms  # isort: skip

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.weights import chosen, ckpt, layout
from pipeline.weights import safetensors as streamed
from pipeline.weights.adapters import file, kinds
from pipeline.weights.convert import convert
from pipeline.weights.merge import merge
from pipeline.weights.names import PREFIX, part_of, to_mindspore
from tests.weights import provenance_samples, synthetic

pytestmark = pytest.mark.usefixtures("device")  # before any test in this process makes a MindSpore tensor

SHAPES = layout.shapes(TINY)
CONV = "model.diffusion_model.out.2.weight"
NORM = "model.diffusion_model.out.0.weight"


def converted(folder, dtype="float16", config=TINY):
    base = synthetic.write_checkpoint(folder / f"{dtype}.safetensors", config, dtype=dtype)
    convert(base, base, config, folder / "convert")
    return {part: folder / f"convert/{part}.ckpt" for part in PREFIX}


def trained(path, change=lambda name, array: array, config=TINY):
    """A float32 UNet checkpoint as the train stage writes it."""
    with ckpt.Writer(path) as writer:
        for name, shape in layout.shapes(config).items():
            if name.startswith(PREFIX["unet"]):
                writer.add(to_mindspore(name), change(name, synthetic.values(name, shape, seed=3)))
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_an_untrained_unet_gives_back_the_source_bit_by_bit(tmp_path, dtype):
    merge(converted(tmp_path, dtype), TINY, dtype, tmp_path / "merge")
    source, merged = (
        streamed.read(tmp_path / f"{dtype}.safetensors"),
        streamed.read(tmp_path / "merge/merged.safetensors"),
    )
    assert list(merged) == list(source) == list(SHAPES)
    for name, tensor in source.items():
        assert (merged[name].dtype, merged[name].shape) == (tensor.dtype, tensor.shape)
        assert b"".join(map(bytes, merged[name].chunks())) == b"".join(map(bytes, tensor.chunks())), name


def test_the_whole_file_comes_back_from_a_synthetic_source(tmp_path):
    merge(converted(tmp_path), TINY, "float16", tmp_path / "merge")
    assert (tmp_path / "merge/merged.safetensors").read_bytes() == (tmp_path / "float16.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_trained_unet_is_rounded_and_the_rest_kept(tmp_path, dtype):
    components = converted(tmp_path, dtype) | {"unet": trained(tmp_path / "unet.ckpt")}
    merge(components, TINY, dtype, tmp_path / "merge")
    merged = streamed.read(tmp_path / "merge/merged.safetensors")
    for name, shape in SHAPES.items():
        seed = 3 if name.startswith(PREFIX["unet"]) else 0
        np.testing.assert_array_equal(merged[name].array(), synthetic.bits(name, shape, dtype, seed), err_msg=name)


def test_text_encoders_that_were_trained_with_a_unet_are_taken_from_its_file(tmp_path):
    components, shapes = converted(tmp_path), SHAPES
    own = {"clip_l": 7, "unet": 3}  # seeds
    with ckpt.Writer(tmp_path / "unet.ckpt") as writer:
        for name, shape in shapes.items():
            if part_of(name) in own:
                writer.add(to_mindspore(name), synthetic.values(name, shape, own[part_of(name)]))
    assert chosen.trained_parts("clip_l") == ["clip_l"] and chosen.trained_parts("both") == ["clip_l", "clip_g"]
    assert chosen.trained_parts("none") == []
    merge(components | dict.fromkeys(own, tmp_path / "unet.ckpt"), TINY, "float16", tmp_path / "merge")
    merged = streamed.read(tmp_path / "merge/merged.safetensors")
    assert list(merged) == list(shapes)
    for name, tensor in merged.items():
        wanted = synthetic.bits(name, shapes[name], "float16", own.get(part_of(name), 0))
        assert b"".join(map(bytes, tensor.chunks())) == wanted.tobytes(), name
    with pytest.raises(StageError, match="does not hold the clip_g of this model.config"):
        merge(components | {"clip_g": tmp_path / "unet.ckpt"}, TINY, "float16", tmp_path / "merge")


def test_both_files_hold_the_same_for_their_own_readers(tmp_path):
    components = converted(tmp_path) | {"unet": trained(tmp_path / "unet.ckpt")}
    merge(components, TINY, "float16", tmp_path / "merge")
    mindspore = ms.load_checkpoint(str(tmp_path / "merge/merged.ckpt"))
    stability = safetensors.numpy.load_file(tmp_path / "merge/merged.safetensors")
    assert list(mindspore) == [to_mindspore(name) for name in SHAPES]
    for name in SHAPES:
        parameter = mindspore[to_mindspore(name)]
        assert parameter.dtype == ms.float16 and parameter.shape == SHAPES[name]
        np.testing.assert_array_equal(parameter.asnumpy(), stability[name])


def refused(tmp_path, components, match, dtype="float16"):
    with pytest.raises(StageError, match=match) as error:
        merge(components, TINY, dtype, tmp_path / "outs/merge")
    assert not (tmp_path / "outs").exists() or not list((tmp_path / "outs").iterdir())
    return str(error.value)


def test_overflow_in_float16_names_the_tensor(tmp_path):
    def change(name, array):
        if name == CONV:
            array.flat[7] = -70000
        return array

    components = converted(tmp_path) | {"unet": trained(tmp_path / "unet.ckpt", change)}
    message = refused(tmp_path, components, "too large for float16; set merge.dtype to bfloat16 or float32")
    assert f"{CONV}: 1 of 1,152 values, the largest 70000" in message
    merge(components, TINY, "bfloat16", tmp_path / "merge")


def test_nan_and_infinity_in_the_trained_unet_are_named(tmp_path):
    def change(name, array):
        if name == CONV:
            array.flat[:2] = np.nan
        if name == NORM:
            array[3] = np.inf
        return array

    components = converted(tmp_path) | {"unet": trained(tmp_path / "unet.ckpt", change)}
    message = refused(tmp_path, components, "cannot be merged")
    assert f"{CONV}: 2 NaN and 0 infinite among 1,152 values" in message
    assert f"{NORM}: 0 NaN and 1 infinite among 32 values" in message
    assert "too large" not in message


def test_a_unet_of_nan_stops_early_with_a_short_message(tmp_path):
    components = converted(tmp_path) | {
        "unet": trained(tmp_path / "unet.ckpt", lambda name, array: array * np.float32(np.nan))
    }
    assert len(refused(tmp_path, components, "no numbers").splitlines()) < 20


def test_a_unet_of_another_configuration_is_refused_with_shapes(tmp_path):
    wide = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, context_dim=168, transformer_depth=(0, 1, 2)))
    components = converted(tmp_path) | {"unet": trained(tmp_path / "unet.ckpt", config=wide)}
    message = refused(tmp_path, components, "unet.ckpt does not hold the unet of this model.config")
    assert "attn2.to_k.weight (64, 168), wanted (64, 160)" in message
    assert "unknown:\n    model.diffusion_model.input_blocks.7.1.transformer_blocks.1." in message


def test_a_truncated_component_is_refused(tmp_path):
    components = converted(tmp_path)
    components["vae"].write_bytes(components["vae"].read_bytes()[:-1])
    refused(tmp_path, components, "vae.ckpt is cut short")


def test_a_component_in_the_place_of_another_is_refused(tmp_path):
    components = converted(tmp_path)
    refused(tmp_path, components | {"vae": components["clip_l"]}, "does not hold the vae")


@pytest.fixture
def project(tmp_path):
    """A folder with the code and what the stages before left."""
    root = Path(__file__).resolve().parents[2]
    for folder in ("stages", "pipeline"):
        os.symlink(root / folder, tmp_path / folder)
    shutil.copy(root / "params.yaml", tmp_path)
    (tmp_path / "outs/train/weights").mkdir(parents=True)
    converted(tmp_path / "outs")
    trained(tmp_path / "outs/train/weights/unet.ckpt")
    provenance_samples.write(tmp_path / "outs/train/weights")
    return tmp_path


def run_stage(project):
    return subprocess.run([sys.executable, "-m", "stages.merge"], cwd=project, capture_output=True, text=True)


def test_the_stage_takes_the_weights_that_params_ask_for(project):
    done = run_stage(project)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (project / "outs/merge").iterdir()) == [
        "README.md", "merged.ckpt", "merged.safetensors",
    ]  # fmt: skip

    params = (project / "params.yaml").read_text().replace("  ema: false", "  ema: true")
    (project / "params.yaml").write_text(params.replace("  weights: raw", "  weights: ema"))
    failed = run_stage(project)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "unet_ema.ckpt does not exist" in failed.stderr and "one that is there (raw)" in failed.stderr

    trained(project / "outs/train/weights/unet_ema.ckpt", lambda name, array: array / 2)
    assert run_stage(project).returncode == 0
    merged = streamed.read(project / "outs/merge/merged.safetensors")[CONV].array()
    np.testing.assert_array_equal(merged, (synthetic.values(CONV, SHAPES[CONV], seed=3) / 2).astype(np.float16))


@pytest.mark.parametrize(
    ("wanted", "file"), [("raw", "unet"), ("ema", "unet_ema"), ("best", "unet_best"), (300, "step-00000300")]
)
def test_which_weights_are_meant(tmp_path, wanted, file):
    with pytest.raises(StageError, match=f"{file}.ckpt does not exist and merge.weights: {wanted} asks for it"):
        chosen.find(tmp_path, wanted)
    (tmp_path / f"{file}.ckpt").touch()
    assert chosen.find(tmp_path, wanted) == tmp_path / f"{file}.ckpt"
    with pytest.raises(StageError, match=rf"set merge.weights to one that is there \({wanted}\), or see"):
        chosen.find(tmp_path, 7)


def test_all_weights_that_are_there_are_named(tmp_path):
    for name in ("step-00001000", "unet_best", "step-00000200", "unet"):
        (tmp_path / f"{name}.ckpt").touch()
    with pytest.raises(StageError, match=r"\(raw, best, 200, 1000\), or set train.ema to true and train again"):
        chosen.find(tmp_path, "ema")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_an_adapter_is_added_to_the_base(tmp_path, kind):
    """And to nothing else: all other tensors keep their bits."""
    components = converted(tmp_path)
    names = ("input_blocks.4.1.proj_in", "out.2")
    parts = {module: adapter_parts(kind, f"{PREFIX['unet']}{module}.weight") for module in names}
    adapter = tmp_path / "adapter.safetensors"
    named = {f"{file.layer_name(m)}.{part}": value for m, own in parts.items() for part, value in own.items()}
    file.write(adapter, named, {file.layer_name(module): 3.0 for module in names}, {})
    merge(components, TINY, "float32", tmp_path / "merge", adapter=adapter)
    merged = streamed.read(tmp_path / "merge/merged.safetensors")
    for name, shape in SHAPES.items():
        expected = synthetic.bits(name, shape, "float16").astype(np.float32)
        if (module := name.removeprefix(PREFIX["unet"]).removesuffix(".weight")) in names and name.endswith("weight"):
            changed = kinds.changed(expected, parts[module], 3.0)
            assert np.abs(changed - expected).max() > 1e-4
            expected = changed
        np.testing.assert_array_equal(merged[name].array(), expected, err_msg=name)


def adapter_parts(kind: str, weight: str) -> dict[str, np.ndarray]:
    shapes = kinds.shapes(kind, SHAPES[weight], rank=4)
    return {part: synthetic.values(f"{weight}.{part}", shape).astype(np.float32) for part, shape in shapes.items()}


def test_an_adapter_is_added_to_another_start(tmp_path):
    """train.init_from may be a whole model in one file."""
    start = synthetic.write_checkpoint(tmp_path / "other.safetensors", TINY, seed=5)
    name = "model.diffusion_model.out.2.weight"
    parts = adapter_parts("lora", name)
    layer, adapter = file.layer_name(name), tmp_path / "adapter.safetensors"
    file.write(adapter, {f"{layer}.{part}": value for part, value in parts.items()}, {layer: 4.0}, {})
    merge(converted(tmp_path) | {"unet": start}, TINY, "float32", tmp_path / "merge", adapter=adapter)
    merged = streamed.read(tmp_path / "merge/merged.safetensors")
    expected = kinds.changed(synthetic.bits(name, SHAPES[name], "float16", 5), parts, 4.0)
    np.testing.assert_array_equal(merged[name].array(), expected)
    clip = next(name for name in SHAPES if name.startswith(PREFIX["clip_l"]))
    np.testing.assert_array_equal(merged[clip].array(), synthetic.bits(clip, SHAPES[clip], "float16"))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    layer, adapter = "lora_unet_input_blocks_8_1_proj_in", tmp_path / "adapter.safetensors"
    shapes = kinds.shapes("lora", (1280, 1280), 2)
    file.write(adapter, {f"{layer}.{part}": np.ones(s, np.float32) for part, s in shapes.items()}, {layer: 2.0}, {})
    with pytest.raises(StageError, match="is an adapter of model.config sdxl-base"):
        merge(converted(tmp_path), TINY, "float16", tmp_path / "merge", adapter=adapter)
    assert not (tmp_path / "merge").exists()

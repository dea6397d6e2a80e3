"""The convert stage: what comes out bit by bit, and bad weights, which leave nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import CONFIGS, TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout
from pipeline.weights import safetensors as streamed
from pipeline.weights.convert import convert
from pipeline.weights.names import PREFIX, to_mindspore
from tests.weights import synthetic

SHAPES = layout.shapes(TINY)
UNET_NORM = "model.diffusion_model.out.0.weight"
UNET_CONV = "model.diffusion_model.out.2.weight"
VAE_CONV = "first_stage_model.quant_conv.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return synthetic.write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", TINY)


@pytest.fixture
def arrays(tiny):
    return safetensors.numpy.load_file(tiny)


def save(path, arrays):
    safetensors.numpy.save_file(arrays, path)
    return path


def converted(out):
    assert sorted(path.name for path in out.iterdir()) == [
        "clip_g.ckpt", "clip_l.ckpt", "sources.json", "unet.ckpt", "vae.ckpt",
    ]  # fmt: skip
    return {name: tensor for part in PREFIX for name, tensor in ckpt.read(out / f"{part}.ckpt").items()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_tensor_bit_by_bit_in_the_layouts_order(tmp_path, dtype):
    base = synthetic.write_checkpoint(tmp_path / "base.safetensors", TINY, dtype=dtype)
    convert(base, base, TINY, tmp_path / "convert")
    tensors = converted(tmp_path / "convert")
    assert list(tensors) == [to_mindspore(name) for name in SHAPES]
    for (name, shape), tensor in zip(SHAPES.items(), tensors.values(), strict=True):
        assert (tensor.dtype, tensor.shape) == (dtype, shape)
        np.testing.assert_array_equal(tensor.array(), synthetic.bits(name, shape, dtype), err_msg=name)


def test_each_tensor_keeps_its_own_dtype(tmp_path, arrays):
    arrays[UNET_NORM] = arrays[UNET_NORM].astype(np.float32)
    base = save(tmp_path / "mixed.safetensors", arrays)
    convert(base, base, TINY, tmp_path / "convert")
    tensors = converted(tmp_path / "convert")
    assert tensors[to_mindspore(UNET_NORM)].dtype == "float32"
    assert tensors[UNET_CONV].dtype == "float16"


def test_position_ids_are_dropped_and_logit_scale_kept(tmp_path, arrays):
    arrays["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = np.arange(77)[None]
    base = save(tmp_path / "x.safetensors", arrays)
    convert(base, base, TINY, tmp_path / "convert")
    tensors = converted(tmp_path / "convert")
    assert len(tensors) == len(SHAPES)
    assert tensors["conditioner.embedders.1.model.logit_scale"].shape == ()


@pytest.mark.parametrize("form", ["prefixed", "bare", "whole checkpoint"])
def test_a_vae_file_replaces_the_bases_own(tmp_path, tiny, form):
    other = synthetic.write_checkpoint(tmp_path / "vae.safetensors", TINY, seed=5, dtype="float32")
    if form != "whole checkpoint":
        own = {n: a for n, a in safetensors.numpy.load_file(other).items() if n.startswith(PREFIX["vae"])}
        save(other, own if form == "prefixed" else {n.removeprefix(PREFIX["vae"]): a for n, a in own.items()})
    convert(tiny, other, TINY, tmp_path / "convert")
    tensors = converted(tmp_path / "convert")
    np.testing.assert_array_equal(
        tensors[VAE_CONV].array(), synthetic.bits(VAE_CONV, SHAPES[VAE_CONV], "float32", seed=5)
    )
    np.testing.assert_array_equal(tensors[UNET_CONV].array(), synthetic.bits(UNET_CONV, SHAPES[UNET_CONV], "float16"))


def test_another_vae_leaves_the_other_components_the_same_bytes(tmp_path, tiny):
    other = synthetic.write_checkpoint(tmp_path / "vae.safetensors", TINY, seed=5)
    convert(tiny, tiny, TINY, tmp_path / "a")
    convert(tiny, other, TINY, tmp_path / "b")
    same = {
        part: (tmp_path / f"a/{part}.ckpt").read_bytes() == (tmp_path / f"b/{part}.ckpt").read_bytes()
        for part in PREFIX
    }
    assert same == {"unet": True, "clip_l": True, "clip_g": True, "vae": False}


def test_a_base_without_a_vae_takes_one_from_elsewhere(tmp_path, tiny, arrays):
    base = save(tmp_path / "no_vae.safetensors", {n: a for n, a in arrays.items() if not n.startswith(PREFIX["vae"])})
    with pytest.raises(StageError, match="missing:"):
        convert(base, base, TINY, tmp_path / "convert")
    convert(base, tiny, TINY, tmp_path / "convert")
    assert VAE_CONV in converted(tmp_path / "convert")


# Bad weights


def refused(tmp_path, base, match, config=TINY, vae=None):
    """The message of a conversion that must fail and leave what was there before."""
    out = tmp_path / "outs" / "convert"
    with pytest.raises(StageError, match=match) as error:
        convert(base, vae or base, config, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return str(error.value)


def test_several_faults_are_listed_at_once(tmp_path, arrays):
    del arrays[UNET_NORM]
    arrays[UNET_CONV] = arrays[UNET_CONV][:, :5].copy()
    arrays["model.diffusion_model.extra"] = np.zeros((2, 3), np.float32)
    arrays["first_stage_model.quant_conv.bias"] = np.zeros(8, np.int64)
    message = refused(tmp_path, save(tmp_path / "bad.safetensors", arrays), "bad.safetensors does not hold the weights")
    assert f"1 missing:\n    {UNET_NORM} (32)" in message
    assert "1 unknown:\n    model.diffusion_model.extra float32 (2, 3)" in message
    assert f"1 of another shape:\n    {UNET_CONV} (4, 5, 3, 3), wanted (4, 32, 3, 3)" in message
    assert "1 of another type:\n    first_stage_model.quant_conv.bias I64, wanted float32, float16, bfloat16" in message


def test_many_faults_are_counted(tmp_path, arrays):
    few = {name: array for name, array in arrays.items() if name.startswith(PREFIX["vae"])}
    message = refused(tmp_path, save(tmp_path / "bad.safetensors", few), "missing")
    wanted = len(SHAPES) - len(few)
    assert f"{wanted} missing:" in message and f"and {wanted - 10} more" in message
    assert len(message.splitlines()) < 20


def test_a_missing_vae_tensor_of_the_other_file_is_named(tmp_path, tiny, arrays):
    own = {n.removeprefix(PREFIX["vae"]): a for n, a in arrays.items() if n.startswith(PREFIX["vae"])}
    del own["quant_conv.weight"]
    refused(
        tmp_path,
        tiny,
        r"vae.safetensors (.|\n)*quant_conv.weight \(8, 8, 1, 1\)",
        vae=save(tmp_path / "vae.safetensors", own),
    )


def test_nan_and_infinity_are_named_and_counted(tmp_path, arrays):
    arrays[UNET_CONV].flat[[1, 5, 9]] = np.nan
    arrays[UNET_CONV].flat[2] = -np.inf
    arrays[VAE_CONV].flat[0] = np.inf
    message = refused(tmp_path, save(tmp_path / "nan.safetensors", arrays), "nan.safetensors .*is damaged")
    assert f"{UNET_CONV}: 3 NaN and 1 infinite among 1,152 values" in message
    assert f"{VAE_CONV}: 0 NaN and 1 infinite among 64 values" in message


def test_a_file_of_nan_stops_early_with_a_short_message(tmp_path, arrays):
    base = save(tmp_path / "nan.safetensors", {name: np.full_like(array, np.nan) for name, array in arrays.items()})
    assert len(refused(tmp_path, base, "is damaged").splitlines()) < 20


def test_a_truncated_file_is_refused(tmp_path, tiny):
    base = tmp_path / "cut.safetensors"
    base.write_bytes(tiny.read_bytes()[:-1000])
    refused(tmp_path, base, "cut.safetensors is cut short")


def test_a_pickled_file_is_refused(tmp_path):
    base = tmp_path / "model.ckpt"
    base.write_bytes(b"PK\3\4" + bytes(1000))
    refused(tmp_path, base, "pickled PyTorch weights")


def test_an_absent_file_is_named(tmp_path):
    refused(tmp_path, tmp_path / "none.safetensors", "none.safetensors does not exist")


@pytest.mark.parametrize("config, other", [("tiny", "sdxl-base"), ("sdxl-base", "tiny")])
def test_weights_of_another_configuration_are_recognised(tmp_path, config, other):
    """Full size without its bytes: the data are a hole in the file."""
    base = tmp_path / "base.safetensors"
    entries = {name: ("float16", shape) for name, shape in layout.shapes(CONFIGS[other]).items()}
    writer = streamed.Writer(base, entries)
    with pytest.raises(ValueError, match="more tensors"):
        writer.close()
    os.truncate(base, base.stat().st_size + sum(2 * int(np.prod(shape)) for _, shape in entries.values()))
    message = refused(
        tmp_path, base, f"holds weights of the configuration {other}; set model.config to {other}", CONFIGS[config]
    )
    assert len(message.splitlines()) == 1


# The stage


@pytest.fixture
def project(tmp_path):
    """A copy of the code to run stages in."""
    root = Path(__file__).resolve().parents[2]
    for folder in ("stages", "pipeline"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "params.yaml", tmp_path)
    (tmp_path / "data/base").mkdir(parents=True)
    return tmp_path


def run_stage(project):
    return subprocess.run([sys.executable, "-m", "stages.convert"], cwd=project, capture_output=True, text=True)


def test_the_stage_keeps_the_old_outs_when_it_fails(project):
    base = project / "data/base/tiny_sdxl.safetensors"
    synthetic.write_checkpoint(base, TINY)
    done = run_stage(project)
    assert done.returncode == 0, done.stderr
    assert f"vae: {sum(name.startswith(PREFIX['vae']) for name in SHAPES)} tensors" in done.stdout
    before = {path.name: path.read_bytes() for path in (project / "outs/convert").iterdir()}

    base.write_bytes(base.read_bytes()[:-1])
    failed = run_stage(project)
    assert failed.returncode == 1
    assert "cut short" in failed.stderr and "Traceback" not in failed.stderr
    assert {path.name: path.read_bytes() for path in (project / "outs/convert").iterdir()} == before
    assert [path.name for path in (project / "outs").iterdir()] == ["convert"]


def test_the_stage_does_not_import_mindspore(project):
    code = "import sys, stages.convert, stages.merge; assert not {'mindspore', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=project).returncode == 0

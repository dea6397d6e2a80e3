"""Which way round the text projection lies: every form that tools write, and the pooled output as the proof."""

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import SDXL_BASE, TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout, projection
from pipeline.weights.convert import convert
from pipeline.weights.numeric import cast
from pipeline.weights.safetensors import Writer, read
from pipeline.weights.source import LINEAR, LOGIT_SCALE, PROJECTION, open_weights
from tests.golden import rule
from tests.golden.compare import golden

SHAPES = layout.shapes(TINY)
SHAPE = (1280, 1280)


@pytest.fixture(scope="module")
def arrays():
    return {name: rule.weight(name, shape) for name, shape in SHAPES.items()}


def saved(path, arrays, **changes):
    """The arrays with some replaced, or left out (None), as a file."""
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    safetensors.numpy.save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_both_names_with_and_without_logit_scale(tmp_path, arrays, capsys, with_scale, linear):
    changes = {} if with_scale else {LOGIT_SCALE: None}
    if linear:
        changes |= {PROJECTION: None, LINEAR: arrays[PROJECTION].T}
    base = saved(tmp_path / "x.safetensors", arrays, **changes)
    tensors = open_weights(base, base, TINY)
    assert list(tensors) == list(SHAPES)
    np.testing.assert_array_equal(tensors[PROJECTION].array(), arrays[PROJECTION])
    scale = arrays[LOGIT_SCALE] if with_scale else np.float32(np.log(100))
    assert tensors[LOGIT_SCALE].array() == scale
    said = capsys.readouterr().out
    assert ("ln 100 stands in" in said) == (not with_scale)
    assert ("text_projection.weight is read as torch.nn.Linear holds it, transposed" in said) == linear
    assert ("text_projection is read as OpenCLIP holds it, not transposed" in said) == (not linear and not with_scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("transposed", [True, False])
def test_both_names_for_one_matrix(tmp_path, arrays, capsys, transposed, dtype):
    array = arrays[PROJECTION].T if transposed else arrays[PROJECTION]
    base = saved(tmp_path / "x.safetensors", arrays, **{LINEAR: array.astype(dtype)})
    tensors = open_weights(base, base, TINY)
    assert list(tensors) == list(SHAPES)
    np.testing.assert_array_equal(tensors[PROJECTION].array(), arrays[PROJECTION])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", ["zeros", "one value", "shape", "type"])
def test_both_names_that_disagree(tmp_path, arrays, form):
    array = arrays[PROJECTION].T.copy()
    array[3, 5] += 1
    other = {"zeros": np.zeros_like(array), "one value": array, "shape": array[:5], "type": array.astype(np.int8)}
    base = saved(tmp_path / "x.safetensors", arrays, **{LINEAR: other[form]})
    with pytest.raises(StageError, match=f"holds {PROJECTION} and {LINEAR}, which disagree: .* take out the one"):
        open_weights(base, base, TINY)


@pytest.mark.parametrize("linear", [True, False])
def test_where_it_is_not_square_the_shape_tells(tmp_path, linear):
    config = rule.SMALL
    wanted = layout.shapes(config)[PROJECTION]
    array = rule.weight(PROJECTION, wanted)
    name = LINEAR if linear else PROJECTION
    for held in (array, array.T):
        tensor = read(saved(tmp_path / "x.safetensors", {name: held}))[name]
        assert projection.is_transposed(tensor, linear, wanted) == (held is not array, "shape")


def test_the_pooled_output_is_the_proof(device, tmp_path, arrays):
    """Linear's form through convert and our encoder, against transformers' own pooled output."""
    from pipeline.models.encode import text_encoder

    changes = {PROJECTION: None, LINEAR: arrays[PROJECTION].T, LOGIT_SCALE: None}
    base = saved(tmp_path / "x.safetensors", arrays, **changes)
    convert(base, base, TINY, tmp_path / "convert")
    encode = text_encoder(TINY, tmp_path / "convert/clip_l.ckpt", tmp_path / "convert/clip_g.ckpt", device, "float32")
    _, pooled = encode(rule.ids(TINY.clip_l.vocab_size, "end"), rule.ids(TINY.clip_g.vocab_size, "zero"))
    wanted = golden("tiny")["pooled"]
    np.testing.assert_allclose(pooled, wanted, atol=1e-4 * np.abs(wanted).max())
    held = ckpt.read(tmp_path / "convert/clip_g.ckpt")[PROJECTION].array()
    assert np.abs(held - held.T).max() > 0.1  # or the test could not fail


# SDXL's own values, at full size


def base_like(seed=0, moved=0.0):
    """A matrix that has sd_xl_base_1.0's known values, each moved at random as a fine-tune would."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.015, SHAPE).astype(np.float32)
    values[np.ix_(projection._PLACES, projection._PLACES)] = projection._BASE
    return values + rng.normal(0, moved, SHAPE).astype(np.float32) if moved else values


def tensor(path, values, dtype):
    bits = np.frombuffer(cast(np.ascontiguousarray(values), "float32", dtype), np.uint8)
    with Writer(path, {"p": (dtype, SHAPE)}) as writer:
        writer.begin("p", dtype, SHAPE)
        writer.write(bits)
    return read(path)["p"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("moved", [0.0, 1e-3])
@pytest.mark.parametrize("linear", [True, False])
def test_the_bases_values_tell_whatever_the_name(tmp_path, dtype, moved, linear):
    wanted = layout.shapes(SDXL_BASE)[PROJECTION]
    values = base_like(1, moved)
    as_openclip = projection.is_transposed(tensor(tmp_path / "a", values, dtype), linear, wanted)
    as_linear = projection.is_transposed(tensor(tmp_path / "b", values.T, dtype), linear, wanted)
    assert as_openclip == (False, "values") and as_linear == (True, "values")


@pytest.mark.parametrize("linear", [True, False])
def test_other_values_are_read_by_the_name(tmp_path, linear):
    values = np.random.default_rng(2).normal(0, 0.015, SHAPE).astype(np.float32)
    assert projection.is_transposed(tensor(tmp_path / "a", values, "float16"), linear, SHAPE) == (linear, "name")

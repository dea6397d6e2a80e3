import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters

from pipeline.models.config import TINY
from pipeline.models.encode import text_encoder, vae_decoder, vae_encoder
from pipeline.models.load import load_weights
from pipeline.models.vae import VAEEncoder
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout, names
from tests.golden import rule
from tests.golden.compare import golden

pytestmark = pytest.mark.usefixtures("device")


def write(path, values: dict[str, np.ndarray], dtype="float32"):
    with ckpt.Writer(path) as writer:
        for name, value in values.items():
            if dtype == "bfloat16":
                data = (value.view(np.uint32) >> 16).astype(np.uint16)
            else:
                data = value.astype(dtype)
            writer.begin(name, dtype, value.shape)
            writer.write(data.tobytes())
    return path


def component(part):
    """MindSpore name -> the rule's value, for a component of the tiny configuration"""
    shapes = layout.shapes(TINY)
    return {names.to_mindspore(n): rule.weight(n, s) for n, s in shapes.items() if n.startswith(names.PREFIX[part])}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {part: write(folder / f"{part}.ckpt", component(part)) for part in names.PREFIX}


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_vae_functions(device, checkpoints):
    encode = vae_encoder(TINY, checkpoints["vae"], device, "float32")
    decode = vae_decoder(TINY, checkpoints["vae"], device, "float32")
    close(encode(rule.normal("pixels", (rule.BATCH, 3, *rule.PIXELS))), golden("tiny")["moments"])
    pixels = decode(rule.normal("latents", (rule.BATCH, 4, *rule.LATENT)))
    assert pixels.dtype == np.float32
    close(pixels[:, :, ::4, ::4], golden("tiny")["pixels"])


def test_text_function(device, checkpoints):
    encode = text_encoder(TINY, checkpoints["clip_l"], checkpoints["clip_g"], device, "float32")
    context, pooled = encode(rule.ids(TINY.clip_l.vocab_size, "end"), rule.ids(TINY.clip_g.vocab_size, "zero"))
    close(context, np.concatenate([golden("tiny")["clip_l"], golden("tiny")["clip_g"]], axis=2))
    close(pooled, golden("tiny")["pooled"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_dtypes(tmp_path, dtype):
    values = {n: v for n, v in component("vae").items() if "decoder" not in n}
    path = write(tmp_path / "vae.ckpt", values, dtype)
    with no_init_parameters():
        cell = VAEEncoder(TINY.vae)
    load_weights(cell, path, names.PREFIX["vae"])
    for name, parameter in cell.parameters_and_names():
        wanted = values[names.PREFIX["vae"] + name]
        if dtype == "float16":
            wanted = wanted.astype(np.float16).astype(np.float32)
        if dtype == "bfloat16":
            wanted = (wanted.view(np.uint32) & 0xFFFF0000).view(np.float32)
        np.testing.assert_array_equal(parameter.asnumpy(), wanted)


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16])
def test_norms_stay_float32(checkpoints, dtype):
    with no_init_parameters():
        cell = VAEEncoder(TINY.vae)
    load_weights(cell, checkpoints["vae"], names.PREFIX["vae"], dtype)
    kinds = {name.endswith((".gamma", ".beta")): parameter.dtype for name, parameter in cell.parameters_and_names()}
    assert kinds == {True: ms.float32, False: dtype}
    wanted = ms.Tensor(component("vae")["first_stage_model.encoder.conv_in.weight"]).astype(dtype)
    np.testing.assert_array_equal(
        cell.encoder.conv_in.weight.astype(ms.float32).asnumpy(), wanted.astype(ms.float32).asnumpy()
    )


def test_errors_name_every_tensor(tmp_path):
    values = component("vae")
    del values["first_stage_model.quant_conv.bias"]
    values["first_stage_model.encoder.conv_in.weight"] = np.zeros((32, 4, 3, 3), np.float32)
    path = write(tmp_path / "vae.ckpt", values)
    cell = VAEEncoder(TINY.vae)
    before = cell.encoder.conv_out.weight.asnumpy()
    with pytest.raises(StageError) as caught:
        load_weights(cell, path, names.PREFIX["vae"])
    message = str(caught.value)
    assert str(path) in message
    assert "first_stage_model.quant_conv.bias is missing; wanted shape (8,)" in message
    assert "first_stage_model.encoder.conv_in.weight has shape (32, 4, 3, 3); wanted (16, 3, 3, 3)" in message
    np.testing.assert_array_equal(cell.encoder.conv_out.weight.asnumpy(), before)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(tmp_path, value, dtype):
    values = component("vae")
    name = next(iter(values))
    values[name] = np.full_like(values[name], value)
    path = write(tmp_path / "vae.ckpt", values, dtype)
    with no_init_parameters():
        cell = VAEEncoder(TINY.vae)
    with pytest.raises(StageError, match=f"vae.ckpt is damaged; download or make it again: {name} holds NaN or infinity"):
        load_weights(cell, path, names.PREFIX["vae"])


def test_bfloat16_on_a_cpu_is_refused(device, checkpoints):
    with pytest.raises(StageError, match="bfloat16 needs an Ascend"):
        vae_encoder(TINY, checkpoints["vae"], device, "bfloat16")

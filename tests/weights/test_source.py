"""Single files as people have them: further tensors, MindSpore's .ckpt, and models that are no SDXL base."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout, marks
from pipeline.weights.convert import convert
from pipeline.weights.names import PREFIX, to_mindspore
from pipeline.weights.source import check_start, open_unet, open_weights
from tests.weights import synthetic

SHAPES = layout.shapes(TINY)
UNET_NORM = "model.diffusion_model.out.0.weight"
UNET_CONV = "model.diffusion_model.out.2.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
CLIP_L = "conditioner.embedders.0.transformer."
TOKENS = CLIP_L + "text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return synthetic.write_checkpoint(tmp_path_factory.mktemp("base") / "base.safetensors", TINY)


@pytest.fixture
def arrays(base):
    return safetensors.numpy.load_file(base)


def save(path, arrays):
    safetensors.numpy.save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)
    return path


def check(tensors, dtype="float16"):
    assert list(tensors) == list(SHAPES)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.array(), synthetic.bits(name, SHAPES[name], dtype), err_msg=name)


# Further tensors

SCHEDULE = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "denoiser.sigmas",
]
FURTHER = {
    "of a noise schedule": SCHEDULE,
    "averaged weights (EMA)": ["model_ema.decay", "model_ema.num_updates", "model_ema.diffusion_modelout2weight"],
    "marks of the objective": ["v_pred", "ztsnr"],
    "positions, which count 0 to 76": [CLIP_L + "text_model.embeddings.position_ids"],
    "of an adapter (LoRA, LyCORIS)": ["lora_unet_out_2.lora_up.weight", "lycoris_out.alpha", "x.hada_w1_a"],
    "of an optimizer or its progress": ["global_step", "adam_m.model.diffusion_model.out.2.weight"],
    "others": [
        "model.diffusion_model.scaled_fp8",
        "conditioner.embedders.0.logit_scale",
        "\u00e9t\u00e9",
        "cond_stage",
    ],
}


def test_further_tensors_of_every_kind_and_dtype_are_named_and_left_out(tmp_path, arrays, capsys):
    dtypes = [np.float32, np.float64, np.int64, np.bool_, np.uint8, np.float16]
    names = [name for kind in FURTHER.values() for name in kind]
    more = {name: np.zeros((0,) if name in ("v_pred", "ztsnr") else 3, dtypes[i % 6]) for i, name in enumerate(names)}
    path = save(tmp_path / "x.safetensors", arrays | more)
    check(open_weights(path, path, TINY))
    said = capsys.readouterr().out
    assert f"x.safetensors: {len(names)} further tensors, which are no part of SDXL, are left out:" in said
    for kind, own in FURTHER.items():
        listed = re.search(rf"^  {len(own)} {re.escape(kind)}:\n((?:    .*\n)+)", said, re.MULTILINE)
        assert listed, f"{kind} not in:\n{said}"
        assert sum(f"    {name} " in listed[1] for name in own) == min(len(own), 10)


def test_nothing_is_said_of_a_plain_file(base, capsys):
    check(open_weights(base, base, TINY))
    assert capsys.readouterr().out == ""


def test_further_tensors_do_not_hide_what_is_missing(tmp_path, arrays):
    renamed = {name.replace("model.out.0", "model.out.zero"): array for name, array in arrays.items()}
    path = save(tmp_path / "x.safetensors", renamed | {"betas": np.ones(1000)})
    with pytest.raises(StageError) as error:
        open_weights(path, path, TINY)
    assert f"2 missing:\n    {UNET_NORM} (32)" in str(error.value)
    assert "2 unknown:\n    model.diffusion_model.out.zero" in str(error.value)
    assert "1 further tensor, which is no part of SDXL: 1 of a noise schedule" in str(error.value)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({UNET_CONV: None}, f"1 missing:\n    {UNET_CONV} (4, 32, 3, 3)"),
        ({UNET_CONV: np.zeros((3, 3), np.float16)}, "1 of another shape:"),
        ({UNET_CONV: np.zeros((4, 32, 3, 3), np.int8)}, "1 of another type:"),
    ],
)
def test_the_cause_comes_before_what_stands_beside(tmp_path, arrays, change, cause):
    ema = {name.replace("model.", "model_ema.", 1): a for name, a in arrays.items() if name.startswith("model.")}
    beside = {"betas": np.ones(1000), CLIP_L + "text_model.embeddings.position_ids": np.arange(77)}
    named = {name: array for name, array in (arrays | ema | beside | change).items() if array is not None}
    path = save(tmp_path / "x.safetensors", named | {"what": np.zeros(2)})
    with pytest.raises(StageError) as error:
        open_weights(path, path, TINY)
    lines = str(error.value).splitlines()
    assert "\n".join(lines[1:3]).strip().startswith(cause) and len(lines) == 6
    assert lines[3:] == [
        "  1 unknown:",
        "    what F64 (2)",
        f"  {len(ema) + 2} further tensors, which are no part of SDXL: 1 of a noise schedule; "
        f"1 positions, which count 0 to 76; {len(ema)} averaged weights (EMA)",
    ]


def test_further_layers_are_another_network(tmp_path, arrays):
    """Left out they would be missed: the network is deeper than the configuration."""
    name = "model.diffusion_model.output_blocks.0.1.transformer_blocks.1.norm1.weight"
    path = save(tmp_path / "x.safetensors", arrays | {name: np.ones(128, np.float16)})
    with pytest.raises(
        StageError, match=r"1 unknown:\n    model.diffusion_model.output_blocks.0.1.transformer_blocks.1"
    ):
        open_weights(path, path, TINY)


def test_a_vaes_further_tensors(tmp_path, base, arrays, capsys):
    own = {n.removeprefix(PREFIX["vae"]): a for n, a in arrays.items() if n.startswith(PREFIX["vae"])}
    more = {"loss.logvar": np.zeros(1, np.float32), "model_ema.num_updates": np.zeros((), np.int64)}
    check(open_weights(base, save(tmp_path / "vae.safetensors", own | more), TINY))
    assert "vae.safetensors: 2 further tensors" in capsys.readouterr().out


# Names


def test_clip_l_as_transformers_5_6_names_it(tmp_path, arrays, capsys):
    """In single files too: sd-scripts and OneTrainer write its names as they come."""
    flat = {name.replace(CLIP_L + "text_model.", CLIP_L): array for name, array in arrays.items()}
    assert flat.keys() != arrays.keys()
    path = save(tmp_path / "x.safetensors", flat)
    check(open_weights(path, path, TINY))
    mixed = {n.replace(CLIP_L + "text_model.e", CLIP_L + "e") if "mlp" in n else n: a for n, a in arrays.items()}
    path = save(tmp_path / "mixed.safetensors", mixed)
    check(open_weights(path, path, TINY))
    assert capsys.readouterr().out == ""


def test_one_tensor_under_two_names_is_refused(tmp_path, arrays):
    twice = arrays | {TOKENS.replace("text_model.", ""): arrays[TOKENS]}
    path = save(tmp_path / "x.safetensors", twice)
    with pytest.raises(StageError, match="token_embedding.weight, which name the same tensor; take one of them out"):
        open_weights(path, path, TINY)


# Shapes


def test_a_logit_scale_of_one_axis_is_the_scalar(tmp_path, arrays, capsys):
    name = "conditioner.embedders.1.model.logit_scale"
    path = save(tmp_path / "x.safetensors", arrays | {name: arrays[name].reshape(1)})
    tensors = open_weights(path, path, TINY)
    check(tensors)
    assert tensors[name].shape == () and capsys.readouterr().out == ""
    path = save(tmp_path / "two.safetensors", arrays | {name: np.zeros(2, np.float16)})
    with pytest.raises(StageError, match=r"logit_scale \(2\), wanted scalar or \(1\)"):
        open_weights(path, path, TINY)


@pytest.mark.parametrize("names", [("q",), ("q", "k", "v", "proj_out")])
def test_a_vaes_attention_as_linear_is_the_convolutions(tmp_path, base, arrays, names):
    """In the whole model's file, and in a VAE's own with and without the prefix."""
    prefix = PREFIX["vae"]
    flat = [f"{prefix}{side}.mid.attn_1.{name}.weight" for side in ("encoder", "decoder") for name in names]
    arrays |= {name: arrays[name][:, :, 0, 0] for name in flat}
    whole = save(tmp_path / "x.safetensors", arrays)
    check(open_weights(whole, whole, TINY))
    check(open_weights(base, whole, TINY))
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    check(open_weights(base, save(tmp_path / "vae.safetensors", own), TINY))
    path = save(tmp_path / "cut.safetensors", arrays | {flat[0]: arrays[flat[0]][:-1]})
    with pytest.raises(StageError, match=r"attn_1.q.weight \(.*, wanted \(\d+, \d+, 1, 1\) or \(\d+, \d+\)"):
        open_weights(path, path, TINY)


# Shards


def shards(folder, arrays, index="model.safetensors.index.json"):
    """A single file's layout in two shards."""
    folder.mkdir()
    names = sorted(arrays)
    files = {name: f"model-{1 + (i > 300):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save(folder / file, {name: arrays[name] for name in names if files[name] == file})
    if index:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "sd_xl.safetensors.index.fp16.json"])
def test_a_single_files_shards_are_read_through_their_index(tmp_path, base, arrays, index):
    folder = shards(tmp_path / "x", arrays, index)
    check(open_weights(folder, folder, TINY))
    check(open_weights(base, folder, TINY))
    marks.check(folder, "epsilon", False)
    marked = shards(tmp_path / "v", arrays | {"v_pred": np.zeros(0, np.float32)}, index)
    with pytest.raises(StageError, match="its tensor v_pred says"):
        marks.check(marked, "epsilon", False)
    (folder / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(StageError, match="has the indices .*; wanted one"):
        open_weights(folder, folder, TINY)


def test_shards_without_index_are_not_named_as_single_files(tmp_path, arrays):
    folder = shards(tmp_path / "x", arrays, None)
    with pytest.raises(StageError, match="00001-of-00002.safetensors is a shard of a single file") as error:
        open_weights(folder, folder, TINY)
    assert "join them into one file" in str(error.value) and "own path" not in str(error.value)


# MindSpore


def write_ckpt(path, arrays, rename=to_mindspore, dtype=None):
    with ckpt.Writer(path) as writer:
        for name, array in arrays.items():
            writer.add(rename(name), array, dtype)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["base.ckpt", "base.safetensors", "base"])
def test_a_mindspore_checkpoint_is_a_base_whatever_its_name(tmp_path, dtype, name, capsys):
    values = {name: synthetic.bits(name, shape, dtype) for name, shape in SHAPES.items()}
    path = write_ckpt(tmp_path / name, values, dtype=dtype)
    tensors = open_weights(path, path, TINY)
    check(tensors, dtype)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert capsys.readouterr().out == ""


def test_mindspores_own_writer(tmp_path, device):
    """With the check sum that it appends, and as the safetensors that it writes with its own names."""
    import mindspore as ms

    named = [
        {"name": to_mindspore(name), "data": ms.Tensor(synthetic.bits(name, shape, "float16"))}
        for name, shape in SHAPES.items()
    ]
    for name, settings in (("plain", {}), ("crc", {"crc_check": True}), ("st", {"format": "safetensors"})):
        ms.save_checkpoint(named, str(tmp_path / name), **settings)
        [path] = tmp_path.glob(f"{name}*")
        check(open_weights(path, path, TINY))


def test_what_mixed_precision_and_training_leave_in_a_checkpoint(tmp_path, arrays, capsys):
    """MindONE's O2 wraps norms, so that their names have ._backbone in them; its trainings add their progress."""

    def rename(name):
        name = to_mindspore(name)
        return re.sub(r"\.(gamma|beta)$", r"._backbone._backbone.\1", name) if name.startswith("model.") else name

    more = {"learning_rate": np.float32([1e-5]), "adam_m." + UNET_CONV: arrays[UNET_CONV]}
    path = write_ckpt(tmp_path / "x.ckpt", arrays | more, rename)
    check(open_weights(path, path, TINY))
    assert "2 of an optimizer or its progress:" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["prefixed", "bare", "whole"])
def test_a_mindspore_checkpoint_as_vae(tmp_path, base, form):
    prefix = PREFIX["vae"]
    arrays = {name: synthetic.bits(name, shape, "float32", seed=5) for name, shape in SHAPES.items()}
    if form != "whole":
        arrays = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    rename = (lambda name: to_mindspore(name).removeprefix(prefix)) if form == "bare" else to_mindspore
    tensors = open_weights(base, write_ckpt(tmp_path / "vae.ckpt", arrays, rename), TINY)
    for name, tensor in tensors.items():
        seed, dtype = (5, "float32") if name.startswith(prefix) else (0, "float16")
        np.testing.assert_array_equal(tensor.array(), synthetic.bits(name, SHAPES[name], dtype, seed))


def test_a_checkpoints_faults_are_named(tmp_path, arrays):
    del arrays[UNET_NORM]
    arrays[UNET_CONV] = arrays[UNET_CONV][:, :5].copy()
    path = write_ckpt(tmp_path / "x.ckpt", arrays)
    with pytest.raises(StageError) as error:
        open_weights(path, path, TINY)
    assert f"1 missing:\n    {UNET_NORM} (32)" in str(error.value)
    assert f"1 of another shape:\n    {UNET_CONV} (4, 5, 3, 3), wanted (4, 32, 3, 3)" in str(error.value)


# Other models, by their names


def zeros(*names):
    return {name: np.zeros(2, np.float16) for name in names}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (zeros("lora_unet_x.lora_up.weight", "lora_unet_x.lora_down.weight", "lora_unet_x.alpha"), "an adapter"),
        (zeros("unet.x.lora_A.weight", "unet.x.lora_B.weight"), "an adapter"),
        (zeros("lora_te1_x.hada_w1_a", "lora_te1_x.hada_w1_b"), "an adapter"),
        (zeros("double_blocks.0.img_attn.qkv.weight", "single_blocks.1.linear1.weight"), "seems to be Flux"),
        (zeros("model.diffusion_model.double_blocks.0.img_mod.lin.weight", "first_stage_model.x"), "be Flux"),
        (zeros("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"), "Stable Diffusion 3"),
        (zeros("cond_stage_model.transformer.text_model.final_layer_norm.weight", CONV_IN), "Stable Diffusion 1"),
        (zeros("cond_stage_model.model.ln_final.weight", CONV_IN), "Stable Diffusion 2"),
        (zeros("conditioner.embedders.0.model.ln_final.weight", CONV_IN), "SDXL's refiner"),
        (zeros("control_model.input_blocks.0.0.weight"), "a ControlNet"),
        (zeros("clip_g", "clip_l"), "a textual inversion"),
        (zeros("model.diffusion_model.out.2.bias"), "without the text encoders and the VAE; model.base wants"),
        (zeros("input_blocks.0.0.bias", "output_blocks.0.0.in_layers.0.bias"), "UNet alone"),
        (zeros("down_blocks.0.resnets.0.norm1.weight", "up_blocks.0.resnets.0.norm1.weight"), "UNet alone"),
        (zeros("first_stage_model.quant_conv.bias"), "VAE alone, without the UNet and the text encoders"),
        (zeros("encoder.conv_in.bias", "decoder.conv_out.bias"), "VAE alone"),
        (zeros("text_model.final_layer_norm.weight"), "text encoders alone"),
        (zeros("something.else"), "the weights of this model.config: it holds 0 of the 782 tensors wanted:"),
    ],
)  # fmt: skip
def test_other_models_are_called_by_their_name(tmp_path, tensors, message):
    path = save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(StageError) as error:
        open_weights(path, path, TINY)
    head = str(error.value).splitlines()[0]
    assert message in head and "of the 782 tensors wanted" in head
    assert len(str(error.value).splitlines()) < 40


@pytest.mark.parametrize(("channels", "message"), [(9, "inpainting"), (8, "InstructPix2Pix")])
def test_unets_with_further_inputs(tmp_path, arrays, channels, message):
    arrays[CONV_IN] = np.zeros((32, channels, 3, 3), np.float16)
    path = save(tmp_path / "x.safetensors", arrays)
    with pytest.raises(StageError, match=rf"{message}.: its UNet has {channels} input channels"):
        open_weights(path, path, TINY)


def test_a_base_without_vae_says_that_another_may_be_named(tmp_path, arrays):
    path = save(tmp_path / "x.safetensors", {n: a for n, a in arrays.items() if not n.startswith(PREFIX["vae"])})
    with pytest.raises(StageError, match="without the VAE; model.vae may name another file"):
        open_weights(path, path, TINY)


def test_weights_of_eight_bits_are_refused(tmp_path, arrays):
    path = save(tmp_path / "x.safetensors", arrays | {UNET_CONV: np.zeros((4, 32, 3, 3), np.uint8)})
    with pytest.raises(StageError, match="1 of another type:\n.*out.2.weight U8, wanted float32, float16, bfloat16"):
        open_weights(path, path, TINY)


# A UNet to start from


def test_the_unet_of_a_single_file_is_the_converted_one(tmp_path, base, arrays):
    """Of a whole checkpoint, and of one without the other parts."""
    convert(base, base, TINY, tmp_path / "convert")
    wanted = ckpt.read(tmp_path / "convert/unet.ckpt")
    alone = {name: array for name, array in arrays.items() if name.startswith(PREFIX["unet"])}
    for path in (base, save(tmp_path / "unet.safetensors", alone), tmp_path / "convert/unet.ckpt"):
        found = open_unet(path, TINY)
        assert list(found) == list(wanted)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name].array(), tensor.array(), err_msg=name)


def test_a_file_without_the_whole_unet_is_no_start(tmp_path, arrays):
    arrays[UNET_CONV] = arrays[UNET_CONV][:, :2]
    arrays.pop(UNET_NORM)
    with pytest.raises(
        StageError, match="(?s)does not hold the weights of this model.config.*out.0.weight.*out.2.weight"
    ):
        open_unet(save(tmp_path / "cut.safetensors", arrays), TINY)


def test_a_checkpoint_of_another_component_is_no_start(tmp_path, base):
    """It is told before MindSpore is imported, and by the doctor."""
    convert(base, base, TINY, tmp_path / "convert")
    for part, kind in (("vae", "VAE"), ("clip_l", "text encoders")):
        with pytest.raises(StageError, match=f"holds 0 of the 500 tensors wanted and seems to hold the {kind} alone"):
            check_start(tmp_path / f"convert/{part}.ckpt", TINY, "epsilon", False)


@pytest.mark.parametrize(("inner", "kind"), [("unet", "a diffusers folder, which model.base takes"), ("", "a folder")])
def test_a_folder_is_no_start(tmp_path, inner, kind):
    (tmp_path / "there" / inner).mkdir(parents=True)
    with pytest.raises(StageError, match=rf"^train\.init_from: .*there is {kind}; wanted a single file"):
        check_start(tmp_path / "there", TINY, "epsilon", False)

"""What keys of params.yaml demand of each other and of the device (pipeline/contradictions)."""

import re

import numpy as np
import pytest

from pipeline import hardware
from pipeline.contradictions import data
from pipeline.data import buckets, geometry
from pipeline.models.config import CONFIGS
from pipeline.params import ParamsError, load
from pipeline.stage import StageError
from tests import stub_npus
from tests.test_params import with_changes
from tests.training import training_samples

CPU, ASCEND = {"device.target": "CPU"}, {"device.target": "Ascend"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # two keys
        ({"merge.weights": "ema"}, r"merge\.weights: ema needs train\.ema true"),
        ({"merge.weights": "best"}, r"merge\.weights: best needs train\.keep_best true"),
        ({"merge.weights": 300}, r"merge\.weights: a step needs train\.save_interval above 0.*found 300"),
        ({"merge.weights": 900, "train.save_interval": 300}, r"merge\.weights: must not be above train\.steps \(600\)"),
        ({"train.previews": [{"prompt": "a", "width": 40}]}, r"train\.previews\.0\.width: must be a multiple of 32"),
        ({"train.previews": ["a", {"prompt": "a", "steps": 1000}]}, r"train\.previews\.1\.steps: must be below 1000"),
        ({"train.previews": [{"prompt": "a", "colour": 1}]}, r"train\.previews\.0\.colour: there is no such key"),
        ({"train.preview_sampler": "ddim", "diffusion.prediction": "flow"}, r"train\.preview_sampler: ddim goes by"),
        ({"train.keep_state": True}, r"train\.keep_state: true needs lr_scheduler constant.* or wsd, found cosine"),
        ({"train.keep_best": True, "train.validation_share": 0.0}, r"train\.keep_best: needs validation_share above 0"),
        ({"train.patience": 3, "train.validation_share": 0.0}, r"train\.patience: needs validation_share above 0"),
        ({"train.init_from": "outs/train/weights/unet.ckpt"}, r"train\.init_from: .*is an out of the stages"),
        ({"train.source": "pictures", "cache_latents.crop": "random", "cache_latents.crops": 2},
         r"cache_latents\.crops: must be 1 with train\.source pictures"),
        ({"train.source": "pictures", "train.text_encoders": "clip_l", "cache_text.emphasis": "a1111"},
         r"cache_text\.emphasis: must be none with train\.text_encoders clip_l"),
        ({"train.source": "pictures", "train.text_encoders": "clip_g", "train.text_encoder_learning_rate": 1e3},
         r"train\.weight_decay: must be below 1 / the learning rate \(1000\)"),
        ({"train.source": "pictures", "device.sink_size": 10}, r"device\.sink_size: above 0 needs train\.source cache"),
        ({"model.loras": [{"path": "a"}, {"path": "../b"}]}, r"model\.loras\.1\.path: \.\./b lies outside of model\.lora_folder"),
        ({"model.loras": [{"path": "/a"}]}, r"model\.loras\.0\.path: /a lies outside of .*, which DVC watches"),
        ({"model.loras": [{"path": "b/../a"}]}, r"model\.loras\.0\.path: b/\.\./a is in model\.lora_folder; name it from there: a"),
        (
            {"model.lora_folder": "/l", "model.loras": [{"path": "/l/b/a"}]},
            r"model\.loras\.0\.path: /l/b/a is in model\.lora_folder; name it from there: b/a",
        ),
        ({"model.loras": ["a"]}, r"model\.loras\.0: Input should be a mapping of keys such as path, weight \(found 'a'\)"),
        ({"model.loras": [{"weight": 1.0}]}, r"model\.loras\.0\.path: Field required"),
        ({"model.loras": [["a", 1.0]]}, r"model\.loras\.0: "),
        ({"model.loras": [{"path": "a", "weight": 11.0}]}, r"model\.loras\.0\.weight: .*less than or equal to 10"),
        ({"model.lora_folder": "outs/train/weights"}, r"model\.lora_folder: .*is an out of the stages"),
        ({"cache_latents.crops": 2}, r"cache_latents\.crops: above 1 needs crop random"),
        ({"index.further_resolutions": [100]}, r"index\.further_resolutions\.0: must be a multiple of index\.bucket_step, 32"),
        ({"index.further_resolutions": [96, 96]}, r"index\.further_resolutions\.1: must be .* nor given twice, found 96"),
        ({"index.further_resolutions": [64]}, r"index\.further_resolutions\.0: must be .* neither resolution \(64\)"),
        ({"index.buckets": False, "index.neighbors": 1}, r"index\.neighbors: without buckets there is one size alone"),
        ({"index.resolution": 96, "index.bucket_step": 64}, r"index\.bucket_step: must divide resolution \(96"),
        ({"index.bucket_step": 16}, r"index\.bucket_step: must be a multiple of 32"),
        ({"index.buckets": False, "index.resolution": 80}, r"index\.resolution: must be a multiple of 32"),
        ({"index.min_side": 20000}, r"index\.min_side: every picture is rejected.*max_pixels"),
        ({"sample.width": 40}, r"sample\.width: must be a multiple of 32, found 40"),
        ({"sample.height": 48}, r"sample\.height: must be a multiple of 32, found 48"),
        ({"sample.steps": 1000}, r"sample\.steps: must be below 1000"),
        ({"train.steps": 1, "train.lr_warmup_steps": 1}, r"train\.lr_warmup_steps: must be 0 for a single step"),
        ({"train.steps": 17}, r"train\.lr_warmup_steps: must not be above steps \(17\), found 30"),
        ({"train.weight_decay": 1e4}, r"train\.weight_decay: must be below 1 / the learning rate \(0\.001\)"),
        ({"train.weight_decay": 100, "train.scale_lr": True}, r"train\.weight_decay: .*learning rate \(0\.016\)"),
        (CPU | {"device.jit_level": "O1"}, r"device\.jit_level: O1 runs on Ascend only.*wanted O0"),
        (CPU | {"device.attention": "flash_padded"}, r"device\.attention: flash_padded runs on Ascend only"),
        *[(CPU | {f"{section}.precision": "bfloat16"}, rf"{section}\.precision: bfloat16 runs on Ascend only")
          for section in ("cache_latents", "cache_text", "train", "sample")],
        ({"device.attention": "flash_padded"}, r"device\.attention: flash_padded computes in float16 or bfloat16"),
        ({"device.max_device_memory": "0.0GB"}, r"device\.max_device_memory: wanted more than none"),
        ({"device.master": "a:65536"}, r"device\.master: wanted a port of 1 to 65535"),
        ({"device.master": "a:0"}, r"device\.master: wanted a port of 1 to 65535"),
        ({"device.master": "10.0.0.300:8118"}, r"device\.master: wanted four numbers of 0 to 255.*10\.0\.0\.300"),
        ({"device.master": "10.0.1:8118"}, r"device\.master: wanted four numbers"),
        ({"device.min_nodes": 2}, r"device\.min_nodes: must be at most nodes \(1\), found 2"),
        ({"device.cluster": "auto", "device.nodes": 2, "device.node_rank": 1}, r"device\.node_rank: wanted 0 with device\.cluster"),
        ({"device.nodes": 2}, r"device\.master: nodes 2 need an address .*127\.0\.0\.1:8118 is itself"),
        *[({"device.nodes": 3, "device.node_rank": 2, "device.master": f"{host}:8118"}, r"device\.master: nodes 3 need")
          for host in ("127.0.1.1", "0.0.0.0", "localhost", "LOCALHOST.", "a.localhost")],
        ({"index.resolution": 512, "index.max_pixels": 10_000}, r"index\.max_pixels: every picture is rejected: with "
         r"resolution 512.* one needs \d+ pixels at least, found 10000"),
        ({"index.buckets": False, "index.resolution": 128, "index.max_enlargement": 2.0, "index.max_pixels": 4095},
         r"index\.max_pixels: .* needs 4096 pixels"),
        ({"index.resolution": 16384, "index.max_enlargement": 1.0}, r"index\.max_pixels: every picture is rejected"),
        *[({"train.timestep_bias_strategy": strategy, "train.timestep_bias_portion": portion},
           rf"train\.timestep_bias_portion: {strategy} needs 0\.001 or more.*found {portion:g}")
          for strategy in ("earlier", "later") for portion in (0.0, 0.0009)],
        ({"train.validation_timesteps": [500, 500]}, r"train\.validation_timesteps: wanted each once"),
        ({"data.images": "outs/sample"}, r"data\.images: outs/sample is an out of the stages"),
        ({"data.images": "."}, r"data\.images: \. holds outs/"),
        ({"model.base": "data/../outs/merge/merged.safetensors"}, r"model\.base: .*is an out of the stages"),
        # one key
        ({"data.images": ""}, r"data\.images: Input should be the path"),
        ({"data.images": "a\0b"}, r"data\.images: Input should be the path"),
        ({"data.images": "~/pictures"}, r"data\.images: ~ is not replaced"),
        ({"train.learning_rate": float("nan")}, r"train\.learning_rate: .*finite number"),
        ({"train.max_grad_norm": float("inf")}, r"train\.max_grad_norm: .*finite number"),
        ({"train.snr_gamma": float("inf")}, r"train\.snr_gamma: .*finite number"),
        ({"index.max_rejected": float("nan")}, r"index\.max_rejected: .*finite number"),
        ({"sample.guidance_scale": float("inf")}, r"sample\.guidance_scale: .*finite number"),
        ({"train.learning_rate": 1e-60}, r"train\.learning_rate: Input is outside of float32"),
        ({"train.max_grad_norm": 1e39}, r"train\.max_grad_norm: Input is outside of float32"),
        ({"train.ema_decay": 0.99999999}, r"train\.ema_decay: .*less than or equal to 0\.999999"),
        ({"train.loss_scale": 1e300}, r"train\.loss_scale: "),
        ({"train.seed": -1}, r"train\.seed: .*greater than or equal to 0"),
        ({"sample.seed": -1}, r"sample\.seed: .*greater than or equal to 0"),
        ({"train.seed": 2**64}, r"train\.seed: .*less than"),
        ({"train.batch_size": True}, r"train\.batch_size: .*integer \(found True\)"),
        ({"train.ema": 1}, r"train\.ema: .*boolean \(found 1\)"),
        ({"train.steps": 10**8}, r"train\.steps: .*less than or equal to 99999999"),
        ({"index.workers": 10**9}, r"index\.workers: "),
        ({"cache_latents.batch_size": 10**9}, r"cache_latents\.batch_size: "),
        ({"cache_latents.background": [0, 0, 256]}, r"cache_latents\.background\.2: "),
        ({"sample.prompts": []}, r"sample\.prompts: .*at least 1"),
        ({"sample.prompts": [False]}, r"sample\.prompts\.0: .*in quotes"),
        ({"sample.prompts": ["a", {"negative_prompt": "b"}]}, r"sample\.prompts\.1\.prompt: Field required"),
        ({"sample.prompts": [{"style": "anime"}]}, r"sample\.prompts\.0\.prompt: .*a text with a colon .*quotes"),
        ({"sample.prompts": ["a", {"prompt": "b", "negative": "c"}]}, r"prompts\.1\.negative: there is no such key.*found 'c'"),
        ({"sample.prompts": [{"prompt": 7}]}, r"sample\.prompts\.0\.prompt: .*found 7.*in quotes"),
        ({"sample.prompts": [{"prompt": "b", "width": 40}]}, r"sample\.prompts\.0\.width: .*multiple of 32, found 40"),
        ({"sample.prompts": ["a", {"prompt": "b", "steps": 1000}]}, r"prompts\.1\.steps: must be below 1000.*1000"),
        ({"sample.prompts": [{"prompt": "b", "seed": -1}]}, r"sample\.prompts\.0\.seed: .*greater than or equal"),
        ({"sample.prompts": [{"prompt": "b", "guidance_scale": "7"}]}, r"prompts\.0\.guidance_scale: .*valid number"),
        ({"sample.prompts": [["a", "b"]]}, r"sample\.prompts\.0: .*string"),
        ({"sample.sampler": "dpmpp_2m", "sample.steps": 999}, r"sample\.steps: must be below 999.*dpmpp_2m"),
        ({"diffusion.prediction": "flow", "sample.sampler": "ddim"}, r"sample\.sampler: ddim .*wanted euler"),
        ({"sample.saved_steps": "all"}, r"sample\.saved_steps: needs train\.save_interval.*found all"),
        ({"sample.saved_steps": [100, 100], "train.save_interval": 100}, r"sample\.saved_steps: wanted each once"),
        ({"sample.saved_steps": "some"}, r"sample\.saved_steps: .*'all'"),
        ({"sample.saved_steps": [0]}, r"sample\.saved_steps\.0: .*greater than 0"),
        ({"merge.weights": 350, "train.save_interval": 100}, r"merge\.weights: must be a multiple of train\.save_interval"),
        ({"merge.weights": 100, "train.save_interval": 100, "train.save_limit": 2}, r"merge\.weights: .*keeps the steps from 500 on"),
        ({"sample.saved_steps": [100, 700], "train.save_interval": 100}, r"sample\.saved_steps: must not be above"),
        ({"merge.weights": "Raw"}, r"merge\.weights: .*'raw', 'ema' or 'best'"),
        ({"merge.weights": "lowest"}, r"stands:\n  merge\.weights: Input should be 'raw', 'ema' or 'best', or a valid integer \(found 'lowest'\)$"),
        ({"device.deterministic": "maybe"}, r"stands:\n  device\.deterministic: Input should be 'auto', or a valid boolean \(found 'maybe'\)$"),
        ({"sample.saved_steps": [0]}, r"stands:\n  sample\.saved_steps\.0: Input should be greater than 0 \(found 0\)$"),
        ({"sample.sampler": "heun"}, r"sample\.sampler: .*'euler', 'euler_ancestral'"),
        ({"sample.guidance_rescale": 1.5}, r"sample\.guidance_rescale: .*less than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tmp_path, changes, said):
    with pytest.raises(ParamsError, match=said):
        load(with_changes(tmp_path, changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"merge.weights": "ema", "train.ema": True},
        {"merge.weights": "best", "train.keep_best": True},
        {"merge.weights": 300, "train.save_interval": 300},
        {"train.keep_state": True, "train.lr_scheduler": "constant"},
        {"train.previews": ["a", {"prompt": "b", "negative_prompt": "", "width": 96}], "train.sample_interval": 9},
        {"train.init_from": "data/start.ckpt"},
        {"model.loras": [{"path": "a/b.safetensors", "weight": -0.5}, {"path": "c"}], "model.lora_folder": "/loras"},
        {"cache_latents.crops": 2, "cache_latents.crop": "random"},
        {"sample.steps": 999},
        {"sample.steps": 1000, "diffusion.prediction": "v", "diffusion.zero_terminal_snr": True},
        {"train.steps": 17, "train.lr_scheduler": "constant"},
        {"train.steps": None, "train.epochs": 1},  # how many steps that makes is the data's to say
        {"index.buckets": False, "index.bucket_step": 7},
        {"train.shard_optimizer": True},  # msrun and mpirun may start more ranks than params.yaml says
        {"sample.prompts": ["", " ", "a" * 5000]},
        {"sample.prompts": [{"prompt": ""}, "a", {"prompt": "b", "negative_prompt": "", "seed": 2**64 - 1}]},
        {"sample.prompts": [{"prompt": "b", "width": 32, "height": 96, "steps": 999, "guidance_scale": 1}]},
        {"sample.sampler": "dpmpp_2m_karras", "sample.steps": 1000},
        {"sample.sampler": "unipc", "sample.steps": 998},
        {"sample.saved_steps": "all", "train.save_interval": 100},
        {"sample.saved_steps": [100, 200], "train.save_interval": 100},
        {"train.precision": "bfloat16", "device.attention": "flash", "device.jit_level": "O1"},  # auto may find an NPU
        ASCEND | {"cache_text.precision": "bfloat16"},
        {"data.images": "/elsewhere/outs/pictures"},
        {"device.nodes": 2, "device.master": "10.0.0.1:8118"},
        {"device.nodes": 2, "device.min_nodes": 2, "device.cluster": "auto"},
        {"device.nodes": 2, "device.master": "node-0.cluster:8118"},
        {"device.master": "localhost:8118"},
        {"index.buckets": False, "index.resolution": 128, "index.max_enlargement": 2.0, "index.max_pixels": 4096},
        {"index.resolution": 512, "index.max_enlargement": None, "index.max_pixels": 10_000},
        {"train.timestep_bias_strategy": "later", "train.timestep_bias_portion": 0.001},
    ],
)
def test_what_can_work_is_taken(tmp_path, changes):
    load(with_changes(tmp_path, changes))


@pytest.mark.parametrize(
    ("resolution", "step", "most", "least"), [(512, 64, 1.25, 32), (256, 32, 3.0, 80), (128, 32, 1.0, 1)]
)
def test_the_fewest_pixels_are_those_of_a_picture_that_the_index_takes(tmp_path, resolution, step, most, least):
    """No picture of fewer pixels has a bucket that it covers; one of so many has."""
    keys = {"index.resolution": resolution, "index.bucket_step": step, "index.max_enlargement": most}
    with pytest.raises(ParamsError) as error:
        load(with_changes(tmp_path, keys | {"index.min_side": least, "index.max_pixels": least**2}))
    found = int(re.search(r"needs (\d+) pixels", str(error.value))[1])
    load(with_changes(tmp_path, keys | {"index.min_side": least, "index.max_pixels": found}))
    sizes = buckets.buckets(resolution, step)
    sides = np.arange(least, 4 * resolution)
    for width in sides:
        heights = sides[(found - width * sides >= 0) & (width * sides > found - 4 * resolution)]
        chosen = np.array(sizes)[buckets.choose(np.full(len(heights), width), heights, sizes)]
        times = geometry.enlargement(np.full(len(heights), width), heights, *chosen.T)
        assert (times[width * heights < found] > most).all()


def test_every_model_has_sides_of_which_buckets_are_made():
    assert {data.side_multiple(config) for config in CONFIGS.values()} == {buckets.SIDE_MULTIPLE}


NPU_ONLY = {
    "device.attention": ["flash", "flash_padded"],
    "device.sink_size": [4],
    "device.jit_level": ["O1"],
    "device.kernel_launch_group": [[2, 8]],
    "device.max_device_memory": ["59GB"],
    "device.memory_optimize_level": ["O1"],
    **{f"{section}.precision": ["bfloat16"] for section in ("cache_latents", "cache_text", "train", "sample")},
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NPU_ONLY.items() for value in values])
def test_a_cpu_that_auto_finds_refuses_what_only_an_npu_can(monkeypatch, tmp_path, key, value):
    beside = {"train.precision": "float16"} if key == "device.attention" else {}
    beside |= {"index.buckets": False} if key == "device.sink_size" else {}
    found = training_samples.params(**{"device.target": "auto", key: value} | beside)
    section = key.split(".")[0]
    said = re.escape(f"{key}: {value} needs an Ascend NPU and this machine has none; wanted ")
    stub_npus.show(monkeypatch, tmp_path / "none", 0)
    with pytest.raises(StageError, match=said):
        hardware.check(found, section)
    hardware.check(found, *({"device", "cache_latents", "cache_text", "train", "sample"} - {section}))
    stub_npus.show(monkeypatch, tmp_path / "one", 1)
    hardware.check(found, section)


def test_an_npu_that_is_wished_for_must_be_there(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 0)
    with pytest.raises(StageError, match="device.target: Ascend, but this machine shows no NPU"):
        hardware.check(training_samples.params(**ASCEND), "sample")

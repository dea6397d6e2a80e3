"""params.yaml: what is refused, how it is said, and that a stage says it before MindSpore is imported."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.utils.serialize import modify_yaml, parse_yaml

from pipeline import hardware, params
from pipeline.contradictions import data
from pipeline.data import buckets, geometry
from pipeline.models.config import CONFIGS
from pipeline.params import Params, ParamsError, load
from pipeline.stage import StageError
from tests import stub_npus
from tests.training import training_samples

ROOT = Path(__file__).resolve().parent.parent


def with_changes(path, changes):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    file = path / "params.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return file


def test_every_key_has_a_comment_or_says_itself():
    text = (ROOT / "params.yaml").read_text().splitlines()
    section, bare = None, []
    for line in text:
        if re.match(r"\w+:$", line):
            section = line[:-1]
        elif section in ("train", "device", "diffusion") and (match := re.match(r"  (\w+): [^#]*$", line)):
            bare.append(match[1])
    assert set(bare) <= {
        "gradient_accumulation_steps",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "timestep_bias_multiplier",
    }


# As YAML 1.2 has them; dates and digits with _ are the parser's own additions, which DVC reads so as well.
SCALARS = {
    "1e-5": 1e-5, "1e-05": 1e-5, "1E5": 1e5, "+.5": 0.5, "-.5": -0.5, ".5": 0.5, "1.": 1.0, "+1": 1,
    "1e400": float("inf"), "0x10": 16, "0o17": 15, "010": 10, "089": 89, "1_000": 1000, "0o8": "0o8", "1e": "1e",
    "no": "no", "No": "No", "yes": "yes", "on": "on", "off": "off", "y": "y", "True": True, "tRUE": "tRUE",
    "12:30:45": "12:30:45", "1:30": "1:30", "-1:30": "-1:30", "~": None, "Null": None, "": None, "'~'": "~",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_read_as_yaml_1_2_has_it_and_as_dvc_does(text):
    found = params.parse(f"a: {text}\n", "params.yaml")
    assert found == {"a": SCALARS[text]} == parse_yaml(f"a: {text}\n", "params.yaml")
    assert type(found["a"]) is type(SCALARS[text])


def test_prompts_are_the_text_that_was_given_to_dvc(tmp_path):
    """`dvc exp run -S` writes with the same function, and puts what needs none into no quotes."""
    texts = [text for text in [*SCALARS, "2026-01-01", "=", "<<", " a ", "é\u2028", "a: b", "- a", "#", '"'] if text]
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with modify_yaml(tmp_path / "params.yaml") as tree:
        tree["sample"]["prompts"] = texts
    assert "- no\n" in (tmp_path / "params.yaml").read_text()
    assert load(tmp_path / "params.yaml").sample.prompts == texts


def bomb(first: str, item: str) -> str:
    """Each of 40 lines names the one before it twice."""
    return first + "".join(f"a{n}: &a{n} {item.format(n - 1)}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("  seed: 0", "  seed: 0\n  seed: 1", 1), r'line \d+ .*duplicate key "seed"'),
        (lambda text: text.replace("  seed: 0", "\tseed: 0", 1), r"line \d+ is not YAML"),
        (lambda text: text + "---\n" + text, "another document"),
        (lambda text: "", "the whole file: wanted a mapping of the sections data, model"),
        (lambda text: "- a", "the whole file: wanted a mapping"),
        (lambda text: text + "5: 1\n", "5: Keys should be strings"),
        (lambda text: text + "? {a: b}\n: 1\n", "unhashable key"),
        (lambda text: text + "z: " + "[" * 2000, "is not YAML"),
        (lambda text: text + bomb("a0: &a0 [x]\n", "[*a{0}, *a{0}]"), "a39: Extra inputs|and 20 more"),
        (lambda text: text + bomb("a0: &a0 {x: 1}\n", "{{<<: [*a{0}, *a{0}]}}"), "merge keys"),
        (lambda text: text.replace("  width: 64", "  width: " + "9" * 5000), "is not YAML.*digits"),
        (lambda text: text.replace("width: 64", "width: 0x" + "f" * 5000), "width: .*found a very large number"),
        (lambda text: text.replace("- a yellow star", "- 2026-01-01 #"), r"date 2026-01-01.*put it in quotes"),
        (lambda text: text.replace("- a yellow star", "- 1_000 #"), r"prompts\.1: .*found 1000.*put it in quotes"),
        (lambda text: text.replace("- a yellow star", "- ~ #"), r"prompts\.1: .*found None"),
        (lambda text: text.replace("- a yellow star", "- 2026-13-45 #"), "is not YAML 1.2: ValueError: month"),
        (lambda text: text.replace("- a yellow star", '- "\\ud83d" #'), r"prompts\.1: .*surrogate"),
        (lambda text: text.replace("- a yellow star", "- *a #"), "undefined alias"),
        (lambda text: text.replace("- a yellow star", "- !!python/object:os.system #"), "is not YAML"),
    ],
)  # fmt: skip
def test_what_is_no_settings_file_is_said_in_a_line(tmp_path, change, said):
    text = (ROOT / "params.yaml").read_text()
    assert change(text) != text
    (tmp_path / "params.yaml").write_text(change(text))
    with pytest.raises(ParamsError, match=said) as error:
        load(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in str(error.value) and len(str(error.value)) < 6000


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load(tmp_path / "params.yaml") == load(ROOT / "params.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ParamsError, match="No such file.*params.yaml.*project's folder"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"data: \xff")
    with pytest.raises(ParamsError, match="params.yaml is not UTF-8"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "0.00001", "1.0e-5"])
def test_a_float_is_a_float_however_dvc_writes_it(tmp_path, text):
    source = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(r"learning_rate: \S+", f"learning_rate: {text}", source))
    assert load(tmp_path / "params.yaml").train.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.learning_rat": 1e-4}, r"train\.learning_rat: Extra inputs"),
        ({"train.learning_rate": "fast"}, r"train\.learning_rate: .*number.*found 'fast'"),
        ({"train.learning_rate": 0.0}, r"train\.learning_rate: .*greater than 0"),
        ({"train.steps": 10.5}, r"train\.steps: .*integer"),
        (
            {"train.lr_scheduler": "inverse_sqrt"},
            r"train\.lr_scheduler: .*'constant', 'constant_with_warmup', 'linear', 'cosine', .* or 'wsd'.*'inverse_sqrt'",
        ),
        ({"train.steps": None}, r"train\.steps: give one of steps and epochs"),
        ({"train.epochs": 3}, r"train\.steps: give one of steps and epochs"),
        ({"train.timestep_bias_multiplier": 0.0}, r"train\.timestep_bias_multiplier: .*greater than 0"),
        (
            {"train.timestep_bias_strategy": "range", "train.timestep_bias_begin": 500, "train.timestep_bias_end": 500},
            r"train\.timestep_bias_begin: must be below",
        ),
        (
            {"train.snr_gamma": 5.0, "train.debiased_estimation": True},
            r"train\.debiased_estimation: true needs snr_gamma null",
        ),
        (
            {"train.snr_gamma": 5.0, "train.snr_gamma_soft": 4.0, "train.p2_gamma": 1.0},
            r"train\.snr_gamma_soft: 4\.0 needs snr_gamma null.*\n.*train\.p2_gamma: 1\.0 needs snr_gamma null",
        ),
        ({"diffusion.prediction": "flow", "train.p2_gamma": 1.0}, r"train\.p2_gamma: .*is flow; wanted null"),
        (
            {"diffusion.prediction": "flow", "train.loss_type": "huber", "train.huber_schedule": "snr"},
            r"train\.huber_schedule: snr .*is flow; wanted constant or exponential",
        ),
        (
            {"train.lr_scheduler": "polynomial", "train.lr_end": 1e-3, "train.learning_rate": 1e-3},
            r"train\.lr_end: must be below the learning rate \(0\.001\), found 0\.001",
        ),
        (
            {"train.lr_scheduler": "wsd", "train.lr_warmup_steps": 30, "train.lr_decay_steps": 571},
            r"train\.lr_warmup_steps: must not be above steps \(600\) together with lr_decay_steps, found 30 and 571",
        ),
        ({"train.timestep_min": 500, "train.timestep_max": 500}, r"train\.timestep_min: must be below timestep_max"),
        ({"train.weights_dtype": "float16"}, r"train\.weights_dtype: float16 needs precision float16"),
        (
            {"train.weights_dtype": "float16", "train.precision": "float16", "train.optimizer": "prodigy"},
            r"train\.weights_dtype: float16 loses the first steps of prodigy",
        ),
        (
            {"train.shard_optimizer": True, "train.optimizer": "lion"},
            r"train\.shard_optimizer: true needs optimizer adamw: lion keeps",
        ),
        (
            {"train.shard_optimizer": True, "train.optimizer": "adafactor"},
            r"train\.shard_optimizer: true needs optimizer adamw",
        ),
        ({"train.lr_warmup_steps": 10**6}, r"train\.lr_warmup_steps: must not be above steps"),
        ({"train.validation_timesteps": [1000]}, r"train\.validation_timesteps\.0: .*less than or equal to 999"),
        ({"diffusion.zero_terminal_snr": True}, r"diffusion\.zero_terminal_snr: true needs diffusion\.prediction v"),
        (
            {"diffusion.prediction": "flow", "diffusion.zero_terminal_snr": True},
            r"diffusion\.zero_terminal_snr: true needs diffusion\.prediction v: flow .*wanted false",
        ),
        ({"diffusion.flow_shift": 3.0}, r"diffusion\.flow_shift: .*prediction flow, found epsilon; wanted 1\.0"),
        (
            {"diffusion.prediction": "flow", "train.snr_gamma": 5.0},
            r"train\.snr_gamma: .*prediction is flow; wanted null, found 5\.0",
        ),
        (
            {"diffusion.prediction": "flow", "train.debiased_estimation": True},
            r"train\.debiased_estimation: .*prediction is flow; wanted false, found true",
        ),
        ({"diffusion.scaling_factor": 0.0}, r"diffusion\.scaling_factor: .*greater than"),
        ({"device.node_rank": 1}, r"device\.node_rank: must be below nodes"),
        ({"device.master": "localhost"}, r"device\.master: "),
        (
            {"device.target": "CPU", "device.attention": "flash"},
            r"device\.attention: flash runs on Ascend only.*plain or tiled",
        ),
        (
            {"device.target": "CPU", "device.sink_size": 10},
            r"device\.sink_size: the data sink runs on Ascend only.*wanted 0",
        ),
        ({"device.target": "CPU", "device.max_device_memory": "59GB"}, r"device\.max_device_memory: .*wanted null"),
        ({"device.target": "CPU", "train.precision": "bfloat16"}, r"train\.precision: bfloat16 runs on Ascend only"),
        ({"device.target": "CPU", "device.jit_level": "O1"}, r"device\.jit_level: .*is CPU; wanted O0, found O1"),
        ({"device.target": "CPU", "device.kernel_launch_group": [2, 8]}, r"device\.kernel_launch_group: .*wanted null"),
        ({"device.target": "CPU", "device.memory_optimize_level": "O1"}, r"device\.memory_optimize_level: .*wanted O0"),
        ({"device.kernel_launch_group": [3, 8]}, r"device\.kernel_launch_group: .*3 and 8"),
        ({"device.kernel_launch_group": [8]}, r"device\.kernel_launch_group: .*at least 2"),
        ({"device.kernel_launch_group": [2, 8], "device.jit_level": "O1"}, r"device\.kernel_launch_group: needs .*O0"),
        ({"device.deterministic": "yes"}, r"device\.deterministic.*found 'yes'"),
        (
            {"device.target": "Ascend", "device.attention": "flash"},
            r"device\.attention: flash computes in float16 or bfloat16",
        ),
        (
            {"device.target": "Ascend", "device.sink_size": 1, "index.buckets": True},
            r"device\.sink_size: above 0 needs index\.buckets false",
        ),
        (
            {
                "device.target": "Ascend",
                "device.sink_size": 4,
                "index.buckets": False,
                "train.gradient_accumulation_steps": 2,
            },
            r"device\.sink_size: above 0 needs train\.gradient_accumulation_steps 1",
        ),
    ],
)
def test_what_is_refused_names_the_key_and_what_is_wanted(tmp_path, changes, said):
    with pytest.raises(ParamsError, match=said):
        load(with_changes(tmp_path, changes))


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
        ({"train.previews": [{"prompt": "a", "colour": 1}]}, r"train\.previews\.0\.colour: Extra inputs"),
        ({"train.preview_sampler": "ddim", "diffusion.prediction": "flow"}, r"train\.preview_sampler: ddim goes by"),
        ({"train.keep_state": True}, r"train\.keep_state: true needs lr_scheduler constant.* or wsd, found cosine"),
        ({"train.keep_best": True, "train.validation_share": 0.0}, r"train\.keep_best: needs validation_share above 0"),
        ({"train.patience": 3, "train.validation_share": 0.0}, r"train\.patience: needs validation_share above 0"),
        ({"train.init_from": "outs/train/weights/unet.ckpt"}, r"train\.init_from: .*is an out of the stages"),
        ({"cache_latents.crops": 2}, r"cache_latents\.crops: above 1 needs crop random"),
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
        ({"sample.prompts": ["a", {"prompt": "b", "negative": "c"}]}, r"prompts\.1\.negative: Extra .*found 'c'"),
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
        ({"merge.weights": 100, "train.save_interval": 100, "train.save_limit": 2}, r"merge\.weights: .*begin with step 500"),
        ({"sample.saved_steps": [100, 700], "train.save_interval": 100}, r"sample\.saved_steps: must not be above"),
        ({"merge.weights": "Raw"}, r"merge\.weights: .*'raw', 'ema' or 'best'"),
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
        {"device.nodes": 2, "device.master": "node-0.cluster:8118"},
        {"device.master": "localhost:8118"},
        {"index.buckets": False, "index.resolution": 128, "index.max_enlargement": 2.0, "index.max_pixels": 4096},
        {"index.resolution": 512, "index.max_enlargement": None, "index.max_pixels": 10_000},
        {"train.timestep_bias_strategy": "later", "train.timestep_bias_portion": 0.001},
    ],
)
def test_what_can_work_is_taken(tmp_path, changes):
    load(with_changes(tmp_path, changes))


def test_all_faults_are_listed_at_once(tmp_path):
    changes = {"merge.weights": "ema", "sample.steps": 1000, "train.weights_dtype": "float16"}
    with pytest.raises(ParamsError) as error:
        load(with_changes(tmp_path, changes))
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "train.weights_dtype", "merge.weights", "sample.steps",
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{"merge.weights": "ema"}, {"merge.weights": "best"}])
def test_one_heading_for_a_wrong_value_and_for_keys_that_contradict_each_other(tmp_path, changes):
    with pytest.raises(ParamsError) as error:
        load(file := with_changes(tmp_path, changes))
    assert str(error.value).startswith(f"{file} cannot be used as it stands:\n  merge.weights: ")


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


@pytest.mark.parametrize(
    ("section", "key"),
    [(s, k) for s in ("device", "diffusion", "train") for k in Params.model_fields[s].annotation.model_fields],
)
def test_a_missing_key_is_named(tmp_path, section, key):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    del tree[section][key]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ParamsError, match=rf"{section}\.{key}: Field required"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.learning_rat": 1e-4}, "train.learning_rat"),
        ({"device.target": "CPU", "device.sink_size": 10}, "device.sink_size"),
        # these are refused because no NPU is found
        ({"device.sink_size": 1, "index.buckets": False}, "device.sink_size: 1 needs an Ascend NPU"),
        ({"device.jit_level": "O1"}, "device.jit_level: O1 needs an Ascend NPU"),
        ({"device.kernel_launch_group": [2, 8]}, "device.kernel_launch_group: [2, 8] needs an Ascend NPU"),
        ({"device.memory_optimize_level": "O1"}, "device.memory_optimize_level: O1 needs an Ascend NPU"),
        ({"device.target": "Ascend"}, "device.target: Ascend, but this machine shows no NPU"),
        ({"train.precision": "bfloat16"}, "train.precision: bfloat16 needs an Ascend NPU"),
        ({"device.attention": "flash", "train.precision": "float16"}, "device.attention: flash needs an Ascend NPU"),
    ],
)
def test_the_train_stage_refuses_before_mindspore_is_imported(tmp_path, changes, said):
    refuses_before_mindspore("train", tmp_path, changes, said)


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("index", {"merge.weights": "ema"}, "merge.weights"),
        ("index", {"sample.steps": 1000}, "sample.steps"),
        ("convert", {"merge.weights": "ema"}, "merge.weights"),
        ("sample", {"sample.precision": "bfloat16"}, "sample.precision: bfloat16 needs an Ascend NPU"),
        ("sample", {"sample.width": 40}, "sample.width"),
    ],
)
def test_every_stage_refuses_before_mindspore_is_imported(tmp_path, stage, changes, said):
    refuses_before_mindspore(stage, tmp_path, changes, said)


def refuses_before_mindspore(stage, tmp_path, changes, said):
    for name in ("pipeline", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    # a MindSpore that cannot be imported: whoever tries fails with another message
    (tmp_path / "mindspore.py").write_text("raise SystemExit('MindSpore was imported')")
    with_changes(tmp_path, changes)
    found = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode != 0 and said in found.stderr and "MindSpore was imported" not in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "outs").exists()


def test_the_documents_settings_for_real_weights_are_taken(tmp_path):
    text = re.search(r"```yaml\n(model:.*?)```", (ROOT / "docs/sdxl-on-npus.md").read_text(), re.S)[1]
    changes = {f"{section}.{key}": v for section, keys in yaml.safe_load(text).items() for key, v in keys.items()}
    found = load(with_changes(tmp_path, changes))
    assert (found.model.config, found.index.resolution, found.sample.width) == ("sdxl-base", 1024, 1024)

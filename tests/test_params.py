"""params.yaml: what is refused, how it is said, and that a stage says it before MindSpore is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.params import Params, ParamsError, load

ROOT = Path(__file__).resolve().parent.parent


def with_changes(path, changes):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    file = path / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
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
            {"train.lr_scheduler": "polynomial"},
            r"train\.lr_scheduler: .*'constant', 'constant_with_warmup', 'linear' or 'cosine'.*'polynomial'",
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
        ({"train.param_fp16": True}, r"train\.param_fp16: true needs precision float16"),
        (
            {"train.shard_optimizer": True, "train.optimizer": "adafactor"},
            r"train\.shard_optimizer: true needs optimizer adamw",
        ),
        ({"train.lr_warmup_steps": 10**6}, r"train\.lr_warmup_steps: must not be above steps"),
        ({"train.validation_timesteps": [1000]}, r"train\.validation_timesteps\.0: .*less than or equal to 999"),
        ({"diffusion.zero_terminal_snr": True}, r"diffusion\.zero_terminal_snr: true needs diffusion\.prediction v"),
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
        ({"train.precision": "bfloat16"}, "train.precision: bfloat16 needs an Ascend NPU"),
        ({"device.attention": "flash", "train.precision": "float16"}, "device.attention: flash needs an Ascend NPU"),
    ],
)
def test_the_train_stage_refuses_before_mindspore_is_imported(tmp_path, changes, said):
    for name in ("pipeline", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    # a MindSpore that cannot be imported: whoever tries fails with another message
    (tmp_path / "mindspore.py").write_text("raise SystemExit('MindSpore was imported')")
    with_changes(tmp_path, changes)
    found = subprocess.run(
        [sys.executable, "-m", "stages.train"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode != 0 and said in found.stderr and "MindSpore was imported" not in found.stderr
    assert not (tmp_path / "outs").exists()

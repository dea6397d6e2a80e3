"""What users of this field's trainers get wrong: each is told in a message, with what to do, and leaves no outs.

Each is a folder with the demo's params.yaml changed, some files, and a stage or a tool that is started in it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml

from pipeline.models.config import TINY
from pipeline.weights import layout
from tests.data import data_sets
from tests.training.training_samples import ROOT
from tests.weights import synthetic

PICTURES = {f"p/{n}.png": data_sets.picture(n, 64, 64) for n in range(3)}
OWN = {"data.images": "p"}
SHAPES = layout.shapes(TINY)


@dataclass(frozen=True)
class Mistake:
    command: str  # a stage or a tool
    said: str  # what the message must hold
    changes: dict = field(default_factory=dict)  # of params.yaml
    files: dict | Callable[[Path], None] = field(default_factory=dict)
    code: int = 1


def table(rows: list[dict], name: str = "metadata.jsonl") -> dict:
    return PICTURES | {f"p/{name}": "".join(json.dumps(row) + "\n" for row in rows)}


def base(path: str) -> dict:
    return {"model.base": path, "model.vae": path}


def tensors(path: str, arrays: dict) -> Callable[[Path], None]:
    return lambda folder: safetensors.numpy.save_file(arrays, folder / path)


def cut(folder: Path) -> None:
    """A download that was broken off."""
    whole = synthetic.write_checkpoint(folder / "b.safetensors", TINY).read_bytes()
    (folder / "b.safetensors").write_bytes(whole[: len(whole) // 2])


def not_a_number(folder: Path) -> None:
    """A merge that went wrong."""
    arrays = {name: synthetic.bits(name, shape, "float16") for name, shape in SHAPES.items()}
    name = "model.diffusion_model.out.2.weight"
    arrays[name] = np.full(SHAPES[name], np.nan, np.float16)
    safetensors.numpy.save_file(arrays, folder / "b.safetensors")


def numbers(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float16)


def lora(path: str) -> Callable[[Path], None]:
    """One of Stable Diffusion 1's widths."""
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"

    def write(folder: Path) -> None:
        (folder / path).parent.mkdir()
        parts = {"lora_up.weight": numbers(320, 4), "lora_down.weight": numbers(4, 768), "alpha": numbers(1)}
        safetensors.numpy.save_file({f"{layer}.{name}": value for name, value in parts.items()}, folder / path)

    return write


LORA = {"model.lora_folder": "l", "model.loras": [{"path": "a.safetensors", "weight": 1.0}]}
FULL = {"model.config": "sdxl-base", "index.resolution": 1024, "sample.width": 1024, "sample.height": 1024}
MISTAKES = {
    # pictures
    "a single picture": Mistake("index", "file 'p/0.png'; wanted a folder", {"data.images": "p/0.png"}, PICTURES),
    "a path of Windows": Mistake("index", "there is no such folder or file", {"data.images": "C:\\pictures"}),
    "the home folder as ~": Mistake("index", "~ is not replaced .*write the whole path", {"data.images": "~/pictures"}),
    "a data set saved by `datasets`": Mistake(
        "index", "saved to disk: write it as Parquet", OWN, {"p/dataset_info.json": "{}", "p/data-0.arrow": b"ARROW1"}
    ),
    "a zip": Mistake("index", r"unpack the \.zip", OWN, {"p/pictures.zip": b"PK\3\4"}),
    "compressed tars": Mistake("index", r"compressed tars \(a\.tar\.gz\); unpack", OWN, {"p/a.tar.gz": b"\x1f\x8b"}),
    "videos": Mistake("index", r"holds no pictures.*found a\.mp4", OWN, {"p/a.mp4": b"x"}),
    "pictures of an iPhone": Mistake("index", "HEIC; convert it to PNG or JPEG", OWN, {"p/a.heic": b"x"}),
    "pictures that are smaller than the resolution": Mistake(
        "index", r"index\.max_enlargement, with index\.resolution, say what is too small.*\n.*64×64 would be enlarged",
        OWN | {"index.resolution": 128}, PICTURES,
    ),
    "a metadata column of another name": Mistake(
        "index", r"metadata\.jsonl:1: no text; found file_name, caption", OWN,
        table([{"file_name": "0.png", "caption": "a"}]),
    ),
    "metadata with names of other files": Mistake(
        "index", r"3 of 6 pictures are rejected \(3 absent\).*raise the share", OWN,
        table([{"file_name": f"img_{n}.png", "text": "a"} for n in range(3)]),
    ),
    "metadata as one JSON array": Mistake(
        "index", r"metadata\.jsonl:1: found JSON of type list, wanted an object", OWN,
        PICTURES | {"p/metadata.jsonl": '[{"file_name": "0.png", "text": "a"}]'},
    ),
    "metadata with paths of another folder": Mistake(
        "index", r"'\.\./0\.png' is not a path inside the folder", OWN, table([{"file_name": "../0.png", "text": "a"}])
    ),
    "a caption that is not UTF-8": Mistake(
        "index", r"caption not read: 0\.txt: not UTF-8.*write it as UTF-8", OWN, PICTURES | {"p/0.txt": b"caf\xe9"}
    ),
    # weights
    "a name of the hub as base": Mistake(
        "convert", r"`hf download stabilityai/sdxl --local-dir data/base/sdxl`", base("stabilityai/sdxl")
    ),
    "a name of the hub as VAE": Mistake("convert", r"`hf download madebyollin/fix", {"model.vae": "madebyollin/fix"}),
    "a name of the hub as tokenizer": Mistake(
        "cache_text", r"no vocab\.json and no merges\.txt.*`hf download openai/clip", {"model.tokenizer": "openai/clip"}
    ),
    "an address as base": Mistake("convert", "it is an address: download", base("https://hub.org/x.safetensors")),
    "a pointer of git-lfs": Mistake(
        "convert", "run `git lfs pull`", base("b.safetensors"),
        {"b.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 6938078334\n"},
    ),
    "a web page": Mistake(
        "convert", "as a web page does.*download it again, logged in", base("b.safetensors"),
        {"b.safetensors": "<!DOCTYPE html><html>"},
    ),
    "a download that was broken off": Mistake("convert", r"b\.safetensors .*download", base("b.safetensors"), cut),
    "a pickled checkpoint": Mistake(
        "convert", "pickled PyTorch weights, which can run any code", base("b.ckpt"), {"b.ckpt": b"PK\3\4..."}
    ),
    "a LoRA as base": Mistake(
        "convert", r"an adapter \(LoRA, LyCORIS\).*this goes into model\.loras", base("b.safetensors"),
        tensors("b.safetensors", {"lora_unet_down.alpha": numbers(1), "lora_unet_down.lora_up.weight": numbers(4, 4)}),
    ),
    "Stable Diffusion 1 as base": Mistake(
        "convert", "seems to be Stable Diffusion 1", base("b.safetensors"),
        tensors("b.safetensors", {"cond_stage_model.transformer.text_model.final_layer_norm.weight": numbers(8)}),
    ),
    "a VAE as base": Mistake(
        "convert", r"holds? the VAE alone.*model\.base wants the whole model", base("b.safetensors"),
        tensors("b.safetensors", {"encoder.conv_in.weight": numbers(8, 3, 3, 3), "decoder.conv_out.bias": numbers(3)}),
    ),
    "weights with NaN": Mistake(
        "convert", r"download or make it again:.*out\.2\.weight: 1,152 NaN", base("b.safetensors"), not_a_number
    ),
    "the real size on the tiny weights": Mistake(
        "convert", "set model.config to tiny", FULL | {"train.learning_rate": 1e-5}
    ),
    "a tokenizer of another model": Mistake(
        "cache_text", "1024 tokens and the text encoders of model.config sdxl-base know 49408",
        FULL | {"train.learning_rate": 1e-5},
    ),
    # settings
    "SDXL at the demo's learning rate": Mistake("train", r"0\.001 ruins SDXL.*`make preset NAME=", FULL),
    "another trainer's word for a precision": Mistake(
        "train", r"train\.precision: .*'float16' or 'bfloat16' \(found 'fp16'\)", {"train.precision": "fp16"}
    ),
    "another trainer's word for a device": Mistake(
        "index", r"device\.target: .*'CPU' or 'Ascend' \(found 'cuda'\)", {"device.target": "cuda"}
    ),
    "another trainer's key": Mistake("index", r"train\.max_train_steps: there is no such key", {"train.max_train_steps": 5}),
    "yes for true": Mistake("index", r"train\.ema: .*valid boolean \(found 'yes'\)", {"train.ema": "yes"}),
    "width,height as resolution": Mistake(
        "index", r"index\.resolution: .*integer \(found \[1024, 1024\]\)", {"index.resolution": [1024, 1024]}
    ),
    "bfloat16 without an NPU": Mistake(
        "train", "bfloat16 needs an Ascend NPU.*wanted float32 or float16", {"train.precision": "bfloat16"}
    ),
    "more processes than NPUs are for, and none here": Mistake(
        "train", "this machine shows no NPU", {"device.target": "Ascend", "device.workers": 8}
    ),
    # order and place
    "captions encoded before the weights are converted": Mistake(
        "cache_text", r"outs/convert/clip_l\.ckpt is not there; run `dvc repro convert`"
    ),
    "pictures encoded before the weights are converted": Mistake(
        "cache_latents", r"outs/convert/vae\.ckpt is not there; run `dvc repro convert`"
    ),
    "training before all else": Mistake("train", r"samples\.parquet is not there; run `dvc repro index`"),
    "a merge before a training": Mistake("merge", r"unet\.ckpt does not exist.*run `dvc repro train`"),
    "pictures before a merge": Mistake("sample", "outs/.* is not there; run `dvc repro "),
    "latents shown before there are some": Mistake("pipeline cache show", "run `dvc repro cache_latents`"),
    "a plan before the index": Mistake("pipeline plan", "run `dvc repro index`, or say how many", code=2),
    "a preset by half its name": Mistake("pipeline preset sdxl", "sdxl-8x910b", code=2),
    # sets, far data, adapters, text encoders, a cluster
    "a key of sets.yaml by another name": Mistake(
        "index", r"sets\.yaml cannot be used.*sets\.0\.repeets: .*repeats", OWN,
        PICTURES | {"p/sets.yaml": "sets:\n  - {folder: ., repeets: 3}\n"},
    ),
    "colours that kohya changes": Mistake(
        "index", r"dataset\.toml.*color_aug", OWN,
        PICTURES | {"p/dataset.toml": "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '.'\ncolor_aug = true\n"},
    ),
    "a folder of a web server": Mistake(
        "index", "web servers list no folders", {"data.images": "https://example.com/pictures"}
    ),
    "a token in a URL": Mistake("index", "can hold a key", {"data.images": "https://example.com/a.tar?token=secret"}),
    "a LoRA of Stable Diffusion 1": Mistake(
        "convert", r"l/a\.safetensors is not an adapter of this model\.config", LORA, lora("l/a.safetensors")
    ),
    "a LoRA that is not there": Mistake("convert", r"l/a\.safetensors does not exist; wanted an adapter", LORA, {"l/b": ""}),
    "a training that begins with a LoRA": Mistake(
        "train", r"a\.safetensors does not hold.*seems to be an adapter.*this goes into model\.loras", {"train.init_from": "l/a.safetensors"}, lora("l/a.safetensors")
    ),
    "a rank of 0": Mistake("train", r"train\.rank: .*greater than or equal to 1 \(found 0\)", {"train.rank": 0}),
    "weights of words where encoders learn": Mistake(
        "train", r"cache_text\.emphasis: must be none with train\.text_encoders both",
        {"train.text_encoders": "both", "cache_text.emphasis": "a1111"},
    ),
    "a cluster without Ray": Mistake(
        "index", "device.cluster is set, and Ray is not installed here.*`make repro RAY=1`",
        OWN | {"device.cluster": "auto"}, PICTURES | {"ray.py": "raise ImportError('No module named ray')"},
    ),
    "a node's number on a cluster": Mistake(
        "train", r"device\.node_rank: wanted 0 with device\.cluster, which numbers the nodes itself; found 1",
        {"device.cluster": "auto", "device.nodes": 2, "device.node_rank": 1},
    ),
    "a store where nothing may be written": Mistake(
        "index", r"the store f/store cannot be made: Not a directory; PIPELINE_STORE says", OWN, PICTURES | {"f": "x"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(tmp_path, name):
    mistake = MISTAKES[name]
    for linked in ("pipeline", "stages", "data", "dvc.yaml"):
        (tmp_path / linked).symlink_to(ROOT / linked)
    (tmp_path / "mindspore.py").write_text("raise SystemExit('MindSpore was imported')")
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in mistake.changes.items():
        section, _, inner = key.partition(".")
        tree[section][inner] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    if callable(mistake.files):
        mistake.files(tmp_path)
    else:
        data_sets.write_folder(tmp_path, mistake.files)
    command = mistake.command if mistake.command.startswith("pipeline") else f"stages.{mistake.command}"
    store = "f/store" if "store" in name else str(tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, env=os.environ | {"PIPELINE_STORE": store},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == mistake.code, done.stderr
    assert "Traceback" not in done.stderr and "MindSpore was imported" not in done.stderr
    assert re.search(mistake.said, done.stderr, re.S), done.stderr
    assert len(done.stderr) < 4000
    assert not [path for path in tmp_path.glob("outs/*/*") if path.suffix in (".parquet", ".ckpt", ".safetensors")]


def test_there_are_fifty_and_more():
    assert len(MISTAKES) >= 50


def test_a_stage_started_elsewhere_names_the_folder_to_start_it_in(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stages.index"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "stages are started in the project's folder" in done.stderr

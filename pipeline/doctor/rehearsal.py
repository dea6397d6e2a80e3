"""Two training steps of a very small SDXL on random caches, with the device and the kind of steps of params.yaml: the
way of the train stage, ranks and all, in a folder of its own.

Run as a script in such a folder it is a rank, or starts the ranks."""

import dataclasses
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from pipeline.cache.format import shards
from pipeline.cache.format.names import latent_row
from pipeline.contradictions.paths import BASE_UNET
from pipeline.data import captions
from pipeline.data.tables import SAMPLES
from pipeline.models import config
from pipeline.params import Params
from pipeline.recorded import PROJECT
from pipeline.stage import StageError, run
from pipeline.training import key, launch
from pipeline.training.data import Paths, count_steps, open_data
from pipeline.weights import chosen, ckpt, layout
from pipeline.weights.names import PREFIX, to_mindspore

STEPS = 2
WAIT = 1800  # seconds; on an NPU the graph is compiled for minutes
_SIDE = 64  # pixels
_SMALL = dataclasses.replace(
    config.TINY.unet, channel_mult=(1, 2), transformer_depth=(0, 1), num_res_blocks=1, context_dim=16,
    vector_dim=8 + 6 * 256,
)  # fmt: skip
_POOLED = _SMALL.vector_dim - 6 * 256
_PATHS = Paths(
    **{name: Path(f"{name}.ckpt") for name in ("unet", "vae", "clip_l", "clip_g")},
    latents=Path("latents"),
    text=Path("text"),
    samples=Path("samples.parquet"),
    out=Path("out"),
)


def rehearse(params: Params) -> float:
    """Train two steps in a temporary folder; -> the seconds that it took. Raises StageError with what failed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        YAML().dump(_settings(params).model_dump(), Path(folder) / "params.yaml")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        environment |= {"PYTHONPATH": str(PROJECT), "PIPELINE_STORE": f"{folder}/store"}
        environment["ONEDNN_MAX_CPU_ISA"] = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT")  # as the train stage has it
        try:
            done = subprocess.run(
                [sys.executable, __file__], cwd=folder, env=environment, capture_output=True, text=True, timeout=WAIT
            )
        except subprocess.TimeoutExpired:
            raise StageError(f"two steps were not done after {WAIT} s") from None
        adapter = params.train.adapter != "none"
        if done.returncode or not (Path(folder) / "out/weights" / chosen.file_name("raw", adapter)).exists():
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            first = next((n for n, line in enumerate(lines) if line.startswith("rehearsal.py: ")), -3)
            raise StageError(" ".join(lines[first:][:12]) or f"it ended with code {done.returncode} and no word")
    return time.monotonic() - begun


def _settings(params: Params) -> Params:
    """Those of `params` that say how a step works, and others that keep it short."""
    train, tree = params.train, params.model_dump()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    tree["model"] |= {"config": "tiny"}
    tree["device"] |= {"nodes": 1, "node_rank": 0, "master": master, "compile_cache": False}
    tree["index"] |= {"resolution": _SIDE, "bucket_step": 32, "min_side": 32}
    tree["train"] |= {
        "steps": STEPS, "epochs": None, "batch_size": min(train.batch_size, 2), "lr_warmup_steps": 0,
        "lr_decay_steps": 0, "groups": [], "adapter_targets": ["*"],  # names of parameters that it may not have
        "gradient_accumulation_steps": min(train.gradient_accumulation_steps, 2), "validation_share": 0.0,
        "source": "cache", "text_encoders": "none", "sample_interval": 0, "log_interval": 1,
        "checkpointing_steps": STEPS, "init_from": BASE_UNET,
        "save_interval": 0, "keep_best": False, "keep_state": False, "patience": 0, "previews": [], "tensorboard": False,
    }  # fmt: skip
    tree["merge"] |= {"weights": "raw"}
    tree["cache_text"] |= {"chunks": 1}
    tree["sample"] |= {"width": _SIDE, "height": _SIDE, "saved_steps": []}
    return Params.model_validate(tree)


def _write(params: Params) -> None:
    """The outs of the stages before train, random."""
    draw = np.random.default_rng(0)
    small = config.SDXLConfig(_SMALL, config.TINY.vae, config.TINY.clip_l, config.TINY.clip_g)
    with ckpt.Writer(_PATHS.unet) as writer:
        for name, shape in layout.shapes(small).items():
            if name.startswith(PREFIX["unet"]):
                scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
                writer.add(to_mindspore(name), (scale * draw.standard_normal(shape)).astype(np.float32))
    count = 2 * params.train.batch_size * params.train.gradient_accumulation_steps * params.device.workers
    images = [draw.bytes(16) for _ in range(count)]
    text = captions.name("", None)
    _write_shard(_PATHS.latents, shards.LATENTS, [_latent(image, draw) for image in images])
    _write_shard(_PATHS.text, shards.TEXT, [{
        "row": text,
        "context": draw.standard_normal((77, _SMALL.context_dim)).astype(np.float16).tobytes(),
        "tokens": 77,
        "width": _SMALL.context_dim,
        "pooled": draw.standard_normal(_POOLED).astype(np.float32).tobytes(),
        "pooled_width": _POOLED,
        "caption_tokens": 2,
    }])  # fmt: skip
    columns = {"image": images, "set": [0] * count, "caption": [text] * count, "chance": [1.0] * count}
    columns |= {
        "repeats": [1.0] * count,
        "loss_weight": [1.0] * count,
        "caption_dropout": [None] * count,
        "class_images": [False] * count,
        "buckets": [None] * count,
    }
    pq.write_table(pa.table(columns, schema=SAMPLES), _PATHS.samples)


def _latent(image: bytes, draw: np.random.Generator) -> dict:
    side = _SIDE // 8
    return {
        "row": latent_row(image, False, 0), "image": image, "channels": 8, "latent_height": side, "latent_width": side,
        "latent": draw.standard_normal((8, side, side)).astype(np.float16).tobytes(),
        "original_height": _SIDE, "original_width": _SIDE, "target_height": _SIDE, "target_width": _SIDE,
        "crop_top": 0, "crop_left": 0, "flip": 0, "crop": 0,
    }  # fmt: skip


def _write_shard(folder: Path, kind: shards.Kind, rows: list[dict]) -> None:
    folder.mkdir()
    shards.write(folder / shards.shard_name(0, 1), kind, rows, {"made": "for a rehearsal"})


def main(params: Params) -> None:
    """As stages/train.py does it."""
    config.CONFIGS["tiny"] = dataclasses.replace(config.TINY, unet=_SMALL)
    d = params.device
    if not launch.inside():
        _write(params)
        if d.workers > 1:
            launch.start(d, [__file__], Path("logs"))
            return
    data = open_data(_PATHS, {}, params.train)
    ranks = launch.world_size(d)
    end, _ = count_steps(data, params.train, ranks)
    origin = {name: {"name": "random", "file": True, "sha256": "0"} for name in ("base", "vae")}
    origin |= {"config": "tiny", "resolution": _SIDE}
    training = key.training(
        _PATHS, "tiny", launch.kernels(d, launch.target(d)), params.diffusion, params.train, ranks, end, origin
    )
    from pipeline.training import build
    from pipeline.training.run import fine_tune

    device = build.device(d.model_copy(update={"compile_cache": False}))
    fine_tune(training, data, _PATHS, "tiny", device, params.diffusion, params.train)


if __name__ == "__main__":
    run(main)

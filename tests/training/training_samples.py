"""A workspace to train in, seconds small: a UNet of SDXL's parts and random caches, as the stages before leave them.

Run as a script in the workspace it is the train stage on that UNet: `python -m tests.training.training_samples [key=value ...]`,
with params.yaml's settings replaced by the given ones, by `1:key=value` on rank 1 only. With `stub` as first argument
the UNet is tests/models/stub_unet.py and the encoders are those of live_samples.py, and with `kill=step:4` the process kills itself after the update of step 4 (from 0),
with `kill=save:1` while it writes its second state, with `kill=outs` after it has written its outs and before it clears
its state."""

import functools
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from pipeline import stage
from pipeline.cache.format import shards
from pipeline.cache.format.fingerprint import file_hash
from pipeline.models import config
from pipeline.params import Params
from pipeline.training import launch
from pipeline.weights import ckpt, layout, provenance
from pipeline.weights.names import PREFIX, to_mindspore
from tests.cache.cache_samples import FINGERPRINT, TEXT_FINGERPRINT, caption, latent, write_cache, write_samples
from tests.golden import rule
from tests.weights.synthetic import values

ROOT = Path(__file__).resolve().parents[2]
UNET = replace(rule.MINI, context_dim=12, vector_dim=6 + 6 * 256)
CLIP_L = config.CLIPConfig(width=4, layers=2, heads=2, vocab_size=1024)
CLIP_G = config.CLIPConfig(width=8, layers=2, heads=2, vocab_size=1024, projection_dim=6)
CONFIG = config.SDXLConfig(UNET, config.TINY.vae, CLIP_L, CLIP_G)
SOURCE = {"name": "base.safetensors", "file": True, "sha256": "b" * 64}  # of the UNet, as convert says it
# Of the caches, as params.yaml has it.
MADE_WITH = {
    "latents": {
        "config": "tiny", "precision": "float32", "store": "moments", "crop": "center", "interpolation": "lanczos",
        "background": [255, 255, 255],
    },
    "text": {"config": "tiny", "precision": "float32", "chunks": 1},
}  # fmt: skip
# Every key of the train section, so that the demo's values in params.yaml may change freely.
SETTINGS = {
    "device.target": "CPU",
    "diffusion.prediction": "epsilon",
    "diffusion.zero_terminal_snr": False,
    "diffusion.flow_shift": 1.0,
    "diffusion.scaling_factor": None,
    "diffusion.shift_factor": 0.0,
    "train.init_from": "outs/convert/unet.ckpt",
    "train.source": "cache",
    "train.seed": 0,
    "train.steps": 6,
    "train.epochs": None,
    "train.batch_size": 4,
    "train.gradient_accumulation_steps": 1,
    "train.learning_rate": 1e-3,
    "train.scale_lr": False,
    "train.lr_scheduler": "constant",
    "train.lr_warmup_steps": 0,
    "train.lr_num_cycles": 1,
    "train.lr_power": 1.0,
    "train.lr_end": 1e-7,
    "train.lr_decay_steps": 2,
    "train.groups": [],
    "train.text_encoders": "none",
    "train.text_encoder_learning_rate": 1e-3,
    "train.adapter": "none",
    "train.rank": 4,
    "train.alpha": 2.0,
    "train.adapter_targets": ["*"],
    "train.lokr_factor": -1,
    "train.optimizer": "adamw",
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999,
    "train.adam_epsilon": 1e-8,
    "train.weight_decay": 0.01,
    "train.max_grad_norm": 1.0,
    "train.shard_optimizer": False,
    "train.ema": False,
    "train.ema_decay": 0.9999,
    "train.timestep_distribution": "uniform",
    "train.timestep_logit_mean": 0.0,
    "train.timestep_logit_std": 1.0,
    "train.timestep_sigmoid_scale": 1.0,
    "train.timestep_alpha": 1.0,
    "train.timestep_beta": 1.0,
    "train.timestep_min": 0,
    "train.timestep_max": 1000,
    "train.timestep_bias_strategy": "none",
    "train.timestep_bias_multiplier": 1.0,
    "train.timestep_bias_begin": 0,
    "train.timestep_bias_end": 1000,
    "train.timestep_bias_portion": 0.25,
    "train.snr_gamma": None,
    "train.snr_gamma_soft": None,
    "train.p2_gamma": None,
    "train.p2_k": 1.0,
    "train.debiased_estimation": False,
    "train.loss_type": "l2",
    "train.huber_c": 0.1,
    "train.huber_schedule": "constant",
    "train.noise_offset": 0.0,
    "train.multires_noise_iterations": 0,
    "train.multires_noise_discount": 0.3,
    "train.input_perturbation": 0.0,
    "train.caption_dropout": 0.0,
    "train.caption_dropout_with": "zeros",
    "train.mask_floor": 0.1,
    "train.precision": "float32",
    "train.weights_dtype": "float32",
    "train.loss_scale": 65536.0,
    "train.gradient_checkpointing": False,
    "train.validation_share": 0.2,
    "train.validation_interval": 3,
    "train.validation_timesteps": [300, 700],
    "train.sample_interval": 0,
    "train.previews": [],
    "train.preview_sampler": "euler",
    "train.log_interval": 1,
    "train.tensorboard": False,
    "train.checkpointing_steps": 2,
    "train.checkpoints_total_limit": 1,
    "train.keep_state": False,
    "train.save_interval": 0,
    "train.save_limit": None,
    "train.save_dtype": "float32",
    "train.keep_best": False,
    "train.patience": 0,
}


def params(**changes) -> Params:
    """The project's params.yaml with SETTINGS, and then `changes` such as {"train.steps": 3}."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for path, value in (SETTINGS | changes).items():
        section, key = path.split(".")
        tree[section][key] = value
    return Params.model_validate(tree)


def write_stub(path: Path, unet: config.UNetConfig = UNET) -> None:
    """A random checkpoint of tests/models/stub_unet.py."""
    from tests.models.stub_unet import StubUNet

    with ckpt.Writer(path) as writer:
        for name, parameter in StubUNet(unet).parameters_and_names():
            writer.add(PREFIX["unet"] + name, rule.weight(rule.stability(name), tuple(parameter.shape)))


def open_stub(path: Path, config) -> dict:
    """In place of weights/source.py's open_unet, which knows the names of a UNet."""
    return ckpt.read(path)


def write_unet(path: Path, seed: int = 0) -> None:
    """A random UNet checkpoint of configuration UNET."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ckpt.Writer(path) as writer:
        for name, shape in layout.shapes(CONFIG).items():
            if name.startswith(PREFIX["unet"]):
                writer.add(to_mindspore(name), values(name, shape, seed))


def write_encoders(folder: Path, seed: int = 0) -> None:
    """Random checkpoints of both text encoders of CONFIG."""
    for part in ("clip_l", "clip_g"):
        with ckpt.Writer(folder / f"{part}.ckpt") as writer:
            for name, shape in layout.shapes(CONFIG).items():
                if name.startswith(PREFIX[part]):
                    writer.add(to_mindspore(name), values(name, shape, seed))


def images(count: int) -> list[bytes]:
    return [np.random.default_rng([7, n]).bytes(16) for n in range(count)]


def masked_latent(image: bytes, bucket: tuple[int, int]) -> dict:
    """A row that half of the pictures have a mask in."""
    row = latent(image, bucket)
    return row | ({"mask": mask(row).tobytes()} if image[0] % 2 else {})


def mask(row: dict) -> np.ndarray:
    """(h, w) uint8 of a row of `masked_latent`."""
    shape = row["latent_height"], row["latent_width"]
    return np.random.default_rng(list(row["row"])).integers(0, 256, shape, np.uint8)


def write_workspace(root: Path, count: int = 18, buckets=((64, 64),), rows=latent, vae: bytes | None = None) -> Path:
    """outs/ of the stages before train, in `root`: `count` pictures with a caption each, in turn of the `buckets`. `vae`: what
    stands for the VAE's checkpoint, where one is there."""
    write_unet(root / "outs/convert/unet.ckpt")
    made_by = FINGERPRINT
    if vae is not None:
        (root / "outs/convert/vae.ckpt").write_bytes(vae)
        made_by = {"vae": file_hash(root / "outs/convert/vae.ckpt")}
    (root / "outs/convert" / provenance.SOURCES).write_text(json.dumps({"base": SOURCE, "vae": SOURCE}))
    names = images(count)
    write_cache(
        root / "outs/latents",
        shards.LATENTS,
        [rows(image, buckets[n % len(buckets)]) for n, image in enumerate(names)],
        made_by | MADE_WITH["latents"],
    )
    texts = [f"picture {n}" for n in range(count)]
    fingerprint = TEXT_FINGERPRINT | MADE_WITH["text"]
    write_cache(root / "outs/text", shards.TEXT, [caption(text) for text in ["", *texts]], fingerprint)
    (root / "outs/index").mkdir()
    write_samples(root / "outs/index/samples.parquet", list(zip(names, texts, strict=True)))
    return root


def share_graphs(store: Path, graphs: Path) -> Path:
    """`store` made, with `graphs` for its compiled graphs: all that it has of other runs. tests/training/test_compile_cache.py
    shows that they give the bits of graphs that are compiled anew."""
    store.mkdir(parents=True, exist_ok=True)
    if not (store / "compile").is_symlink():
        (store / "compile").symlink_to(graphs)
    return store


def _start(start, device, script: list[str], logs: Path) -> None:
    """The ranks run this file in place of the stage's."""
    start(device, [__file__, *sys.argv[1:]], logs)


def _kill_at(place: str, number: str) -> None:
    from pipeline.training import run, state, weights

    count, check = 0, run._check

    def kill_after(function, when):
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            if when(*args):
                if function is check:  # by then its last state is written
                    args[-1].wait()
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def saved(*_):
        nonlocal count
        count += 1
        return count == int(number) + 1

    if place == "step":
        run._check = kill_after(run._check, lambda result, *_: result.done == int(number) + 1)
    elif place == "save":
        for module, name in ((state, "_write"), (weights, "write"), (weights, "write_adapter")):
            setattr(module, name, kill_after(getattr(module, name), saved))
    else:
        state.States.clear = kill_after(lambda *_: None, lambda *_: True)


def be_small(stub: bool) -> None:
    """Of this process: "tiny" is CONFIG, and with `stub` the networks are stubs."""
    config.CONFIGS["tiny"] = CONFIG
    if stub:
        from pipeline.training import build, compiled, preview
        from pipeline.weights import source
        from tests.models.stub_unet import StubUNet
        from tests.training.live_samples import decode_latents, encode_ids, encode_pixels

        build.UNet = StubUNet
        build.open_unet = source.open_unet = open_stub
        build.vae_encoder = lambda *_: encode_pixels
        build.text_encoder = lambda *_: encode_ids
        preview.vae_decoder = lambda *_: decode_latents
        compiled._KEPT_KEYS = 1000  # of all tests


def main() -> None:
    from stages import train

    launch.start = functools.partial(_start, launch.start)
    train.RANK = "tests.training.rank_on_stub"
    arguments = sys.argv[1:]
    stub = arguments[:1] == ["stub"]
    be_small(stub)
    if stub:
        arguments.pop(0)
    if arguments[:1] and arguments[0].startswith("kill="):
        _kill_at(*arguments.pop(0).removeprefix("kill=").partition(":")[::2])
    pairs = [pair.split("=", 1) for pair in arguments]
    rank = os.environ.get("RANK_ID")
    changes = {key: yaml.safe_load(value) for key, value in pairs if ":" not in key}
    changes |= {key[2:]: yaml.safe_load(value) for key, value in pairs if key.startswith(f"{rank}:")}
    stage.load = lambda: params(**changes)
    stage.run(train.main)


if __name__ == "__main__":
    main()

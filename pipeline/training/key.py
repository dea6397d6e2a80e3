"""What a training is: everything that shapes it, as plain values. Needs no MindSpore.

Trainings of one `name` go on from each other's states; those of one `exact_name` have the same outs, bit for bit on one
kind of machine where kernels are deterministic. Where no step depends on how many follow (train.lr_scheduler: constant),
longer and shorter runs have one name."""

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from pipeline import params
from pipeline.cache.format import shards, stand_in
from pipeline.cache.format.fingerprint import file_hash
from pipeline.cache.format.table import read_table
from pipeline.stage import PROJECT
from pipeline.training.data import Paths
from pipeline.training.rates import shared_steps
from pipeline.training.stored import Reach

FACTS = (
    "run.json"  # beside the weights: where they come from, which merge writes into the model (weights/provenance.py)
)
# Parts of pipeline/ that shape the outs: the weights, adapters and their metadata, and the pictures on the way.
CODE = ("device.py", "training", "diffusion", "models", "cache", "sampling", "weights")
# Keys of the train section that say how the batch of a step is split: they change last bits only.
_SPLIT_KEYS = {"batch_size", "gradient_accumulation_steps", "shard_optimizer"}
# And those that change nothing; for init_from the file's content stands.
_STATE_KEYS = {"checkpointing_steps", "checkpoints_total_limit", "keep_state", "init_from", "tensorboard"}
# Those of the adapters, where there are none.
_ADAPTER_KEYS = {"rank", "alpha", "adapter_targets", "lokr_factor"}
# And of the text encoders, where none is trained.
_TEXT_KEYS = {"text_encoder_learning_rate"}
# How long the run is.
_LENGTH_KEYS = {"steps", "epochs"}


@dataclass(frozen=True)
class Training:
    description: dict  # of what shapes it
    split: dict  # of each step's batch
    reach: Reach

    @property
    def name(self) -> str:
        return _digest(self.description)

    @property
    def exact_name(self) -> str:
        return _digest({**self.description, "split": self.split, "end": self.reach.end})


def training(
    paths: Paths,
    model: str,
    device: dict,
    diffusion: params.Diffusion,
    train: params.Train,
    ranks: int,
    end: int,
    origin: dict | None = None,
) -> Training:
    """That of configuration `model`, of `end` steps. `device`: its target ("CPU" or "Ascend") and the kinds of its
    kernels, as plain values. `origin`: what else an adapter's file says of where it comes from."""
    global_batch = train.batch_size * train.gradient_accumulation_steps * ranks
    shared = shared_steps(train.lr_scheduler, end, train.lr_decay_steps)
    left_out = _SPLIT_KEYS | _STATE_KEYS | (_LENGTH_KEYS if shared else set())
    left_out |= _ADAPTER_KEYS if train.adapter == "none" else set()
    left_out |= _TEXT_KEYS if train.text_encoders == "none" else set()
    description = {
        "model": model,
        "diffusion": diffusion.model_dump(),
        "train": train.model_dump(exclude=left_out) | {"global_batch": global_batch},
        "device": device,
        **_prepared_with(train),
        "inputs": {
            "unet": file_hash(paths.unet),
            **_encoded(paths, train),
            "samples": file_hash(paths.samples),
        },
    } | ({"origin": origin} if origin else {})
    split = train.model_dump(include=_SPLIT_KEYS) | {"ranks": ranks}
    return Training(description, split, Reach(shared if shared else end, end))


def _prepared_with(train: params.Train) -> dict:
    versions = {"mindspore": metadata.version("mindspore"), "numpy": np.__version__}
    return {
        "versions": versions | ({"pillow": metadata.version("pillow")} if train.source == "pictures" else {}),
        "code": code_digest(*(["data"] if train.reads_captions else [])),
    }


def _encoded(paths: Paths, train: params.Train) -> dict:
    """What stands for all latents and texts."""
    live = {"latents": train.source == "pictures", "text": train.reads_captions}
    return {
        kind.name: file_hash(folder / stand_in.FILE) if live[kind.name] else cache_digest(folder, kind)
        for folder, kind in ((paths.latents, shards.LATENTS), (paths.text, shards.TEXT))
    }


def facts(training: Training, steps: int, best_step: int | None, names: np.ndarray, pictures: int) -> dict:
    """What FACTS says of weights that were trained for so many steps on so many `pictures`; the best of them, where
    they are kept, are those after `best_step`. `names` (n, 16) uint8 are the content hashes of all that the data set
    has, sorted."""
    return {
        "name": training.exact_name,
        "description": training.description,
        "split": training.split,
        "steps": steps,
        "best_step": best_step,
        "pictures": pictures,
        "images": hashlib.blake2b(names.tobytes(), digest_size=16).hexdigest(),
    }


def cache_digest(folder: Path, kind: shards.Kind) -> str:
    """Of the rows' names, fingerprint and checksums, which stand for the payloads."""
    table = read_table(folder, kind, ())
    digest = hashlib.blake2b(json.dumps(table.fingerprint, sort_keys=True).encode(), digest_size=16)
    digest.update(table.columns["row"].tobytes())
    digest.update(table.sums.tobytes())
    return digest.hexdigest()


def code_digest(*further: str) -> str:
    """Of CODE and `further` parts of pipeline/."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (*CODE, *further):
        path = PROJECT / "pipeline" / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.relative_to(PROJECT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def differences(old: dict, new: dict, path: str = "") -> list[str]:
    """Where two trees of plain values differ: "train.learning_rate 0.0005 -> 0.0001". What does not shape a training is
    left out of its description."""
    found = []
    for key in sorted({*old, *new}):
        a, b = (tree.get(key, "left out") for tree in (old, new))
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key} {_shown(a)} -> {_shown(b)}")
    return found


def _shown(value: object) -> object:
    """As it stands in params.yaml."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def _digest(description: dict) -> str:
    return hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()

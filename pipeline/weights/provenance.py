"""Where a fine-tuned model comes from, and how its file says so: modelspec's keys, kohya's `ss_` keys that tools show, and
this pipeline's own under PREFIX.

The facts lie beside what they are facts of: convert writes SOURCES with the base's hashes, train writes RUN beside its
weights. Both are functions of the stages' inputs, and so are the keys; a date there is only where SOURCE_DATE_EPOCH
gives one (https://reproducible-builds.org/specs/source-date-epoch)."""

import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.stage import StageError
from pipeline.weights import safetensors

PREFIX = "sdxl_mindspore_dvc."
SOURCES = "sources.json"
RUN = "run.json"

_SPEC = "1.0.1"
_ARCHITECTURES = {"sdxl-base": "stable-diffusion-xl-v1-base", "tiny": "stable-diffusion-xl-v1-tiny"}
_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"  # whose names the tensors have
_BASE_VERSION = "sdxl_base_v1-0"  # kohya's name of SDXL
HASH = "modelspec.hash_sha256"
DAMAGED = "the tensors are not those that its header names: it was changed or damaged"
# Of adapters: the module by which kohya's scripts make such a network, and its arguments.
_NETWORKS = {
    "lora": ("networks.lora", {}),
    "dora": ("lycoris.kohya", {"algo": "lora", "dora_wd": "True"}),
    "loha": ("lycoris.kohya", {"algo": "loha"}),
    "lokr": ("lycoris.kohya", {"algo": "lokr"}),
}


def sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, of what `sha256sum` prints of the files of weights below, by their paths."""
    if path.is_file():
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.safetensors"))
    lines = [f"{sha256(path / file)}  {file}\n" for file in files]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def intact(path: Path) -> bool | None:
    """Whether the tensors of a .safetensors file have the hash that its header names; None where it names none."""
    named = safetensors.metadata(path).get(HASH)
    return None if named is None else f"0x{safetensors.data_sha256(path)}" == named.lower()


def sources(base: Path, vae: Path, loras: Sequence[tuple[Path, float]] = ()) -> dict[str, Any]:
    """What SOURCES says of the base model and of the VAE: name, whether it is a single file, and sha256; and of the LoRAs
    (file, weight) that were merged into them, where there are any."""
    found = {"base": _source(base)}
    found |= {"vae": found["base"] if vae == base else _source(vae)}
    merged = [{"name": _name(path), "sha256": sha256(path), "weight": weight} for path, weight in loras]
    return found | ({"loras": merged} if merged else {})


def _source(path: Path) -> dict:
    return {"name": _name(path), "file": path.is_file(), "sha256": sha256(path)}


def _name(path: Path) -> str:
    name = path.name or path.resolve().name
    return name.encode(errors="replace").decode()


def read(path: Path, stage: str) -> dict:
    """SOURCES or RUN as the stage wrote it. Raises StageError when it is not there or holds something else."""
    again = f"run `dvc repro {stage}`, which writes it"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is not there; {again}") from None
    except ValueError as error:
        raise StageError(f"{path} is not JSON ({error}); {again}") from None
    wanted = {
        SOURCES: ("base", "vae"),
        RUN: ("name", "description", "split", "steps", "best_step", "pictures", "images"),
    }[path.name]
    if not isinstance(found, dict) or any(key not in found for key in wanted):
        raise StageError(f"{path} lacks one of {', '.join(wanted)}; {again}")
    return found


def metadata(run: dict, origin: dict, config: str, resolution: int, weights: str | int, dtype: str) -> dict[str, str]:
    """The keys of a merged model, all but its hash. `run` and `origin` are what RUN and SOURCES hold; `weights` and
    `dtype` are the keys of `merge`."""
    return (
        _modelspec(run, origin, config, resolution, date())
        | _kohya(run, origin, resolution, step(run, weights))
        | {PREFIX + key: value for key, value in own(run, origin, weights, dtype).items()}
    )


def step(run: dict, weights: str | int) -> int:
    """After how many steps of the training the weights were that `merge.weights` chooses."""
    if isinstance(weights, int):
        return weights
    return run["best_step"] if weights == "best" else run["steps"]


def adapter_metadata(run: dict, weights: str, dtype: str) -> dict[str, str]:
    """The keys of an adapter's file, all but its hashes; `run` says where its base comes from as well."""
    origin, train = run["description"]["origin"], run["description"]["train"]
    resolution, kind = origin["resolution"], train["adapter"]
    spec = _modelspec(run, origin, origin["config"], resolution, origin.get("date"))
    spec["modelspec.architecture"] += "/lora"
    module, arguments = _NETWORKS[kind]
    if kind == "lokr":
        arguments = arguments | {"factor": str(train["lokr_factor"])}
    network = {
        "ss_network_module": module,
        "ss_network_dim": str(train["rank"]),
        "ss_network_alpha": str(train["alpha"]),
    }
    if arguments:
        network["ss_network_args"] = json.dumps(arguments)
    found = spec | _kohya(run, origin, resolution, run["steps"]) | network
    return found | {PREFIX + key: value for key, value in own(run, origin, weights, dtype).items()}


def extracted_metadata(config: str, rank: int, base: Path, tuned: Path) -> dict[str, str]:
    """The keys of the LoRA that is the difference of two files, all but its hashes. What convert and train wrote beside
    them names the model and the run."""
    name, made = base.name, f"{tuned.stem} less {base.stem}"
    origin, run = base.with_name(SOURCES), tuned.with_name(RUN)
    if origin.is_file():
        origin = read(origin, "convert")
        name = origin["base"]["name"]
        made = title(read(run, "train"), origin) if run.is_file() else f"{tuned.stem} less {base_title(origin)}"
    return {
        "modelspec.sai_model_spec": _SPEC,
        "modelspec.architecture": f"{_ARCHITECTURES[config]}/lora",
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": f"{made}, rank {rank}",
        "ss_v2": "False",
        "ss_base_model_version": _BASE_VERSION,
        "ss_sd_model_name": name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_network_args": "{}",
        f"{PREFIX}base": sha256(base),
        f"{PREFIX}tuned": sha256(tuned),
    }


def base_sha256(origin: dict) -> str | None:
    """Of the file that training started from, by which tools know a model; None where there is no such file: the base is
    a folder, or LoRAs were merged into it."""
    return origin["base"]["sha256"] if origin["base"]["file"] and "loras" not in origin else None


def base_title(origin: dict) -> str:
    """The base's name, with those of the LoRAs that were merged into it."""
    merged = [f"{Path(lora['name']).stem} {lora['weight']:g}" for lora in origin.get("loras", ())]
    return " + ".join([Path(origin["base"]["name"]).stem, *merged])


def title(run: dict, origin: dict) -> str:
    return f"{Path(origin['base']['name']).stem} fine-tuned {run['name'][:8]}"


def _modelspec(run: dict, origin: dict, config: str, resolution: int, date: str | None) -> dict[str, str]:
    """https://github.com/Stability-AI/ModelSpec"""
    prediction = run["description"]["diffusion"]["prediction"]
    found = {
        "sai_model_spec": _SPEC,
        "architecture": _ARCHITECTURES[config],
        "implementation": _IMPLEMENTATION,
        "title": title(run, origin),
        "resolution": f"{resolution}x{resolution}",
        "prediction_type": prediction,
    }
    if date:
        found["date"] = date
    return {f"modelspec.{key}": value for key, value in found.items()}


def date() -> str | None:
    """Of SOURCE_DATE_EPOCH. Raises StageError where that is no date."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return None
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise StageError(f"SOURCE_DATE_EPOCH is {epoch}; wanted seconds since 1970, or no such variable") from None


def _kohya(run: dict, origin: dict, resolution: int, steps: int) -> dict[str, str]:
    """The keys of kohya's sd-scripts whose meaning is the same here; the weights are those after so many
    `steps`."""
    train, split = run["description"]["train"], run["split"]
    rate = train["learning_rate"] * (train["global_batch"] if train["scale_lr"] else 1)
    found = {
        "v2": False,  # Stable Diffusion 2
        "base_model_version": _BASE_VERSION,
        "sd_model_name": origin["base"]["name"],
        "new_sd_model_hash": base_sha256(origin),
        "learning_rate": rate,
        "unet_lr": rate,
        "text_encoder_lr": train.get("text_encoder_learning_rate"),  # left out where none is trained
        "lr_scheduler": train["lr_scheduler"],
        "lr_warmup_steps": train["lr_warmup_steps"],
        "optimizer": train["optimizer"],
        "steps": steps,
        "max_train_steps": run["steps"],
        "num_train_images": run["pictures"],
        "batch_size_per_device": split["batch_size"],
        "total_batch_size": train["global_batch"],
        "gradient_accumulation_steps": split["gradient_accumulation_steps"],
        "gradient_checkpointing": train["gradient_checkpointing"],
        "max_grad_norm": train["max_grad_norm"],
        "mixed_precision": {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[train["precision"]],
        "resolution": f"({resolution}, {resolution})",
        "seed": train["seed"],
        "caption_dropout_rate": train["caption_dropout"],
        "noise_offset": train["noise_offset"] or None,
        "min_snr_gamma": train["snr_gamma"],
        "zero_terminal_snr": run["description"]["diffusion"]["zero_terminal_snr"],
    }
    return {f"ss_{key}": str(value) for key, value in found.items() if value is not None}


def own(run: dict, origin: dict, weights: str | int, dtype: str) -> dict[str, str]:
    """This pipeline's own keys: hashes of what went in, the code and the versions, and all settings of the training."""
    return of_training(run) | of_base(origin) | {"weights": str(weights), "dtype": dtype}


def of_training(run: dict) -> dict[str, str]:
    """Those that RUN has."""
    description = run["description"]
    split = {key: value for key, value in run["split"].items() if key != "ranks"}
    # that of a run which may be continued is in its description of no length
    train = {"steps": run["steps"], **description["train"], **split}
    params = {"diffusion": description["diffusion"], "train": train}
    return {
        "training": run["name"],
        "code": description["code"],
        "images": run["images"],
        **description["inputs"],
        "params": json.dumps(params, sort_keys=True),
        "versions": json.dumps(description["versions"], sort_keys=True),
    }


def of_base(origin: dict) -> dict[str, str]:
    """Those that SOURCES has."""
    merged = {"loras": json.dumps(origin["loras"], sort_keys=True)} if "loras" in origin else {}
    return {part: origin[part]["sha256"] for part in ("base", "vae")} | merged


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """In what a file's own keys, without PREFIX, are not those of a workspace, a line each."""
    lines = []
    for key in sorted({*found, *wanted}):
        a, b = found.get(key), wanted.get(key)
        if a != b and key not in ("training", "params"):  # the one is a digest of all, the other is compared in parts
            lines.append(f"{key}: {a} there, {b} here")
    old, new = _leaves(found.get("params", "{}")), _leaves(wanted.get("params", "{}"))
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    lines += [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed]
    if not lines and found.get("training") != wanted.get("training"):
        lines.append("training: another one of the same settings and inputs")
    return lines


def _leaves(text: str) -> dict[str, object]:
    try:
        tree = json.loads(text)
        return {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}
    except (ValueError, AttributeError, RecursionError):  # not as this pipeline writes it
        return {}

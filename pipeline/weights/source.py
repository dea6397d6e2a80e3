"""Base weights as they are published, seen as Stability's layout: a single safetensors file or a diffusers folder.

Only headers are read here. Every tensor is checked against the layout before the first is converted."""

import json
import math
from pathlib import Path

import numpy as np

from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.stage import StageError
from pipeline.weights import diffusers, layout, safetensors
from pipeline.weights.check import differences
from pipeline.weights.diffusers import Recipe
from pipeline.weights.names import PREFIX, part_of
from pipeline.weights.numeric import cast
from pipeline.weights.tensor import Tensor

Found = dict[str, Tensor]
Recipes = dict[str, Recipe]  # by Stability's name


def open_weights(base: Path, vae: Path, config: SDXLConfig) -> dict[str, Tensor]:
    """The whole layout's tensors by Stability's name, in its order; `vae` (unless the same path) replaces base's own.

    Raises StageError that lists missing, unknown and mis-shaped tensors and those of a dtype that is not a weight's."""
    own_vae = base.resolve() == vae.resolve()
    parts = [part for part in PREFIX if own_vae or part != "vae"]
    tensors = _open_base(base, config, parts)
    if not own_vae:
        tensors |= _open_vae(vae, config)
    return {name: tensors[name] for name in layout.shapes(config)}


def _open_base(path: Path, config: SDXLConfig, parts: list[str]) -> Found:
    if path.is_dir():
        found: Found = {}
        for part in parts:
            found |= _read_folder(path / diffusers.FOLDER[part], diffusers.FOLDER[part] + "/")
        return _assemble(path, found, config, lambda other: _diffusers_recipes(other, parts))
    found = {name: tensor for name, tensor in _read_file(path).items() if part_of(name) in (None, *parts)}
    return _assemble(path, found, config, lambda other: _stability_recipes(other, parts))


def _open_vae(path: Path, config: SDXLConfig) -> Found:
    """A VAE alone (Stability's names with or without prefix, or diffusers'), or that of another whole checkpoint."""
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        return _assemble(folder, _read_folder(folder, "vae/"), config, lambda other: _diffusers_recipes(other, ["vae"]))
    found = _read_file(path)
    if any(".down_blocks." in name for name in found):
        found = {f"vae/{diffusers.current(name)}": tensor for name, tensor in found.items()}
        return _assemble(path, found, config, lambda other: _diffusers_recipes(other, ["vae"]))
    if any(name.startswith(PREFIX["vae"]) for name in found):
        found = {name: tensor for name, tensor in found.items() if part_of(name) in (None, "vae")}
    else:
        found = {PREFIX["vae"] + name: tensor for name, tensor in found.items()}
    return _assemble(path, found, config, lambda other: _stability_recipes(other, ["vae"]))


# Reading


def _read_file(path: Path) -> Found:
    if not path.exists():
        raise StageError(f"{path} does not exist; wanted a safetensors file or a diffusers folder")
    return _without_buffers(safetensors.read(path))


def _read_folder(folder: Path, prefix: str) -> Found:
    """The tensors of one model's folder, whichever of the published forms it has; names get `prefix`."""
    files = _files(folder)
    tensors: Found = {}
    for file, names in files.items():
        found = safetensors.read(file)
        if names is not None and set(found) != names:
            odd = sorted(set(found) ^ names)
            raise StageError(
                f"{file} does not hold the tensors that the folder's index says, first {odd[0]}; download it again"
            )
        tensors |= found
    return {prefix + diffusers.current(name): tensor for name, tensor in _without_buffers(tensors).items()}


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, each with the names that an index gives it (None: no index)."""
    for stem in ("diffusion_pytorch_model", "model"):
        for variant in ("", ".fp16"):
            single = folder / f"{stem}{variant}.safetensors"
            if single.is_file():
                return {single: None}
            indices = {f"{stem}{variant}.safetensors.index.json", f"{stem}.safetensors.index{variant}.json"}
            for index in sorted(indices):
                if (folder / index).is_file():
                    return _read_index(folder / index)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in there if name.endswith((".bin", ".pt", ".ckpt"))]
    if pickled:
        raise StageError(f"{folder} has pickled weights only ({', '.join(pickled)}), which can run code when they are "
                         "opened and so are not read; wanted *.safetensors (save_pretrained writes them)")  # fmt: skip
    what = f"has {', '.join(there) or 'no files'}" if folder.is_dir() else "does not exist"
    raise StageError(f"{folder} {what}; wanted diffusion_pytorch_model.safetensors or model.safetensors, their .fp16 "
                     "variant or sharded form, in unet/, vae/, text_encoder/ and text_encoder_2/")  # fmt: skip


def _read_index(index: Path) -> dict[Path, set[str] | None]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise ValueError(f"it points outside of its folder: {file}")
            files.setdefault(index.with_name(file), set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{index} is not an index of sharded weights: {error!r}") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise StageError(f"{index} names files that are not there: {', '.join(missing)}; download them")
    return files


def _without_buffers(found: Found) -> Found:
    """Old exports hold `position_ids`, which count 0 to 76 and are no weights."""
    return {name: tensor for name, tensor in found.items() if name.rpartition(".")[2] != "position_ids"}


# Checking and putting together


def _stability_recipes(config: SDXLConfig, parts: list[str]) -> Recipes:
    return {name: Recipe((name,), (shape,)) for name, shape in layout.shapes(config).items() if part_of(name) in parts}


def _diffusers_recipes(config: SDXLConfig, parts: list[str]) -> Recipes:
    recipes = {}
    for name, shape in layout.shapes(config).items():
        part = part_of(name)
        if part in parts:
            recipe = diffusers.recipe(part, name.removeprefix(PREFIX[part]), shape, config)
            parts_of_it = tuple(f"{diffusers.FOLDER[part]}/{source}" for source in recipe.parts)
            recipes[name] = Recipe(parts_of_it, recipe.shapes, recipe.transposed)
    return recipes


def _assemble(path: Path, found: Found, config: SDXLConfig, recipes_of) -> Found:
    """Make the layout's tensors; `recipes_of(config)` says of what."""
    recipes = recipes_of(config)
    if faults := differences(found, _wanted(recipes)):
        for name, other in CONFIGS.items():
            if other != config and not differences(found, _wanted(recipes_of(other))):
                raise StageError(f"{path} holds weights of the configuration {name}; set model.config to {name}")
        raise StageError(f"{path} does not hold the weights of this model.config:\n{faults}")
    shapes = layout.shapes(config)
    return {name: _make(path, recipe, shapes[name], found) for name, recipe in recipes.items()}


def _wanted(recipes: Recipes) -> dict[str, tuple[layout.Shape, ...]]:
    return {source: recipe.shapes for recipe in recipes.values() for source in recipe.parts}


def _make(path: Path, recipe: Recipe, shape: layout.Shape, found: Found) -> Tensor:
    if not recipe.parts:
        return _logit_scale(found)
    parts = [found[name] for name in recipe.parts]
    if len({part.dtype for part in parts}) > 1:
        mixed = ", ".join(f"{name} {found[name].dtype}" for name in recipe.parts)
        raise StageError(f"{path}: wanted one dtype for what becomes one tensor, found {mixed}")
    return Tensor(parts[0].dtype, shape, tuple(span for part in parts for span in part.spans), recipe.transposed)


def _logit_scale(found: Found) -> Tensor:
    """OpenCLIP's logit_scale, which SDXL never computes with and a diffusers folder leaves out: ln 100, where training
    clips it (arXiv 2103.00020, section 2.5)."""
    dtype = found["text_encoder_2/text_projection.weight"].dtype
    bits = cast(np.float32(math.log(100)).tobytes(), "float32", dtype)
    return Tensor(dtype, (), (), constant=bytes(memoryview(bits)))

"""Base weights as people have them, seen as Stability's layout: a single file (safetensors, or MindSpore's .ckpt) or a
diffusers folder.

Only headers are read here. Every tensor is checked against the layout before the first is converted; what a file holds
beside the layout is named in the log and left out."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.stage import StageError, shown
from pipeline.weights import diffusers, further, layout, marks, projection, recognise
from pipeline.weights.check import differences
from pipeline.weights.diffusers import Recipe
from pipeline.weights.files import Found, has_parts, read_file, read_folder
from pipeline.weights.names import PREFIX, canonical, part_of, to_mindspore
from pipeline.weights.numeric import cast
from pipeline.weights.tensor import Tensor

Recipes = dict[str, Recipe]  # by Stability's name
Wanted = dict[str, tuple[layout.Shape, ...]]

LOGIT_SCALE = PREFIX["clip_g"] + "model.logit_scale"
PROJECTION = PREFIX["clip_g"] + "model.text_projection"
LINEAR = PROJECTION + ".weight"


def open_weights(base: Path, vae: Path, config: SDXLConfig) -> dict[str, Tensor]:
    """The whole layout's tensors by Stability's name, in its order; `vae` (unless the same path) replaces base's own.

    Prints what else the files hold, and how a tensor was read that may be read in two ways. Raises StageError that
    lists missing and mis-shaped tensors and those of a dtype that is not a weight's."""
    own_vae = base.resolve() == vae.resolve()
    parts = [part for part in PREFIX if own_vae or part != "vae"]
    tensors = _open_base(base, config, parts)
    if not own_vae:
        tensors |= open_vae(vae, config)
    return {name: tensors[name] for name in layout.shapes(config)}


def _open_base(path: Path, config: SDXLConfig, parts: list[str]) -> Found:
    if has_parts(path):
        found: Found = {}
        for part in parts:
            found |= _of_folder(path / diffusers.FOLDER[part], part)
        return _assemble(path, found, config, parts, _diffusers_recipes)
    whole = read_file(path)
    found = {name: tensor for name, tensor in whole.items() if part_of(name) in (None, *parts)}
    return _assemble(path, _renamed(path, found, canonical), config, parts, _stability_recipes, whole)


def check_start(path: Path, config: SDXLConfig, prediction: str, zero_terminal_snr: bool) -> None:
    """Raise StageError when a training with these settings cannot start from the file (train.init_from): for its marks
    or its tensors."""
    if path.is_dir():
        folder = (
            "a diffusers folder, which model.base takes" if has_parts(path) and (path / "unet").is_dir() else "a folder"
        )
        raise StageError(
            f"train.init_from: {path} is {folder}; wanted a single file: a MindSpore .ckpt, such as one of "
            "outs/train/weights that was copied out of outs/, or SDXL as one safetensors file"
        )
    marks.check(path, prediction, zero_terminal_snr)
    open_unet(path, config)


def open_unet(path: Path, config: SDXLConfig) -> Found:
    return open_part(path, "unet", config)


def open_part(path: Path, part: str, config: SDXLConfig) -> Found:
    """A component's tensors of a single file by MindSpore's name with the component's prefix. Raises StageError."""
    return {to_mindspore(name): tensor for name, tensor in _open_base(path, config, [part]).items()}


def open_vae(path: Path, config: SDXLConfig) -> Found:
    """A VAE alone (Stability's names with or without prefix, or diffusers'), or that of another whole checkpoint."""
    if has_parts(path):
        folder = path / "vae" if (path / "vae").is_dir() else path
        return _assemble(folder, _of_folder(folder, "vae"), config, ["vae"], _diffusers_recipes)
    found = read_file(path)
    if any(".down_blocks." in name for name in found):
        found = _renamed(path, found, lambda name: _in_folder("vae", name))
        return _assemble(path, found, config, ["vae"], _diffusers_recipes)
    prefixed = any(name.startswith(PREFIX["vae"]) for name in found)
    bare = not prefixed and any(name.startswith(("encoder.", "decoder.")) for name in found)
    own = {name: tensor for name, tensor in found.items() if part_of(name) in (None, "vae")} if prefixed else found
    own = _renamed(path, own, lambda name: canonical(PREFIX["vae"] + name if bare else name))
    return _assemble(path, own, config, ["vae"], _stability_recipes)


# Names


def _of_folder(folder: Path, part: str) -> Found:
    return _renamed(folder, read_folder(folder), lambda name: _in_folder(part, name))


def _in_folder(part: str, name: str) -> str:
    return f"{diffusers.FOLDER[part]}/{diffusers.current(part, name)}"


def _renamed(path: Path, found: Found, rename: Callable[[str], str]) -> Found:
    origin: dict[str, str] = {}
    for name in found:
        new = rename(name)
        if new in origin:
            raise StageError(f"{path} holds {shown(origin[new])} and {shown(name)}, which name the same tensor; "
                             "take one of them out")  # fmt: skip
        origin[new] = name
    return {new: found[name] for new, name in origin.items()}


# Recipes


def _stability_recipes(found: Found, config: SDXLConfig, parts: list[str]) -> Recipes:
    shapes = {name: shape for name, shape in layout.shapes(config).items() if part_of(name) in parts}
    recipes = {
        name: Recipe((name,), diffusers.vae_shapes(name, shape) if part_of(name) == "vae" else (shape,))
        for name, shape in shapes.items()
    }
    if "clip_g" in parts:
        recipes[LOGIT_SCALE] = Recipe((LOGIT_SCALE,), ((), (1,)))  # a vector of one where tools know no scalars
        name = LINEAR if PROJECTION not in found and LINEAR in found else PROJECTION
        if LOGIT_SCALE not in found and name in found:
            recipes[LOGIT_SCALE] = Recipe((), ((),))
        shape = shapes[PROJECTION]
        transposed = name in found and projection.is_transposed(found[name], name == LINEAR, shape)[0]
        recipes[PROJECTION] = Recipe((name,), (shape[::-1] if transposed else shape,), transposed)
    return recipes


def _diffusers_recipes(found: Found, config: SDXLConfig, parts: list[str]) -> Recipes:
    recipes = {}
    for name, shape in layout.shapes(config).items():
        part = part_of(name)
        if part in parts:
            recipe = diffusers.recipe(part, name.removeprefix(PREFIX[part]), shape, config)
            parts_of_it = tuple(f"{diffusers.FOLDER[part]}/{source}" for source in recipe.parts)
            recipes[name] = Recipe(parts_of_it, recipe.shapes, recipe.transposed)
    return recipes


def _wanted(recipes: Recipes) -> Wanted:
    return {source: recipe.shapes for recipe in recipes.values() for source in recipe.parts}


# Checking and putting together


def _assemble(
    path: Path, found: Found, config: SDXLConfig, parts: list[str], recipes_of, whole: Found | None = None
) -> Found:
    """Make the layout's tensors; `recipes_of(found, config, parts)` says of what. `whole`: all that the file holds,
    where `found` is less."""
    recipes = recipes_of(found, config, parts)
    wanted = _wanted(recipes)
    if faults := _faults(found, wanted):
        for name, other in CONFIGS.items():
            if other != config and not _faults(found, _wanted(recipes_of(found, other, parts))):
                raise StageError(f"{path} holds weights of the configuration {name}; set model.config to {name}")
        why = _why(found, wanted, parts, whole or found)
        raise StageError(f"{path} does not hold the weights of this model.config{why}:\n{faults}")
    if PROJECTION in wanted and LINEAR in found:
        if not projection.agree(found[PROJECTION], found[LINEAR]):
            raise StageError(f"{path} holds {PROJECTION} and {LINEAR}, which disagree: neither is the other or its "
                             "transposed; take out the one that is not this model's")  # fmt: skip
        found = {name: tensor for name, tensor in found.items() if name != LINEAR}
    shapes = layout.shapes(config)
    _say(path, found, recipes, shapes[PROJECTION])
    return {name: _make(path, recipe, shapes[name], found, recipes) for name, recipe in recipes.items()}


def _why(found: Found, wanted: Wanted, parts: list[str], whole: Found) -> str:
    """What a reader should know before the tensors are listed: that most are missing, and what the file seems to be."""
    there = sum(name in found for name in wanted)
    few = f"it holds {there:,} of the {len(wanted):,} tensors wanted" if 2 * there < len(wanted) else ""
    reasons = [reason for reason in (few, recognise.what(whole, parts)) if reason]
    return f": {' and '.join(reasons)}" if reasons else ""


def _faults(found: Found, wanted: Wanted) -> str:
    """What keeps the tensors from being those wanted; "" when nothing does. Further ones alone do not, unless they are
    further layers of the same network: then it is another network.

    Those whose name no kind explains are listed, for they may be what is missing; the others are counted."""
    layers = {_without_numbers(name) for name in wanted}
    own = {name: tensor for name, tensor in found.items() if name in wanted or _without_numbers(name) in layers}
    if not differences(own, wanted):
        return ""
    beside = {name: tensor for name, tensor in found.items() if name not in own and further.is_harmless(name)}
    rest = {name: tensor for name, tensor in found.items() if name not in beside}
    return "\n".join(filter(None, [differences(rest, wanted), further.counted(beside)]))


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _say(path: Path, found: Found, recipes: Recipes, shape: layout.Shape) -> None:
    """Print what is left out, and what was decided."""
    wanted = _wanted(recipes)
    if more := {name: tensor for name, tensor in found.items() if name not in wanted}:
        print(f"{path}: {further.note(more)}", flush=True)
    without_scale = LOGIT_SCALE in recipes and not recipes[LOGIT_SCALE].parts
    if without_scale:
        print(f"{path}: no {LOGIT_SCALE}, which SDXL never computes with; ln 100 stands in", flush=True)
    name = recipes[PROJECTION].parts[0] if PROJECTION in recipes else ""
    if name in (PROJECTION, LINEAR):
        transposed, known_by = projection.is_transposed(found[name], name == LINEAR, shape)
        if transposed or name == LINEAR or (without_scale and known_by == "name"):  # what SDXL's own file is not
            form = "as torch.nn.Linear holds it, transposed" if transposed else "as OpenCLIP holds it, not transposed"
            print(f"{path}: {name} is read {form} (known by its {known_by})", flush=True)


def _make(path: Path, recipe: Recipe, shape: layout.Shape, found: Found, recipes: Recipes) -> Tensor:
    if not recipe.parts:
        return _logit_scale(found[recipes[PROJECTION].parts[0]].dtype)
    parts = [found[name] for name in recipe.parts]
    if len({part.dtype for part in parts}) > 1:
        mixed = ", ".join(f"{name} {found[name].dtype}" for name in recipe.parts)
        raise StageError(f"{path}: wanted one dtype for what becomes one tensor, found {mixed}; save them as one dtype")
    return Tensor(parts[0].dtype, shape, tuple(span for part in parts for span in part.spans), recipe.transposed)


def _logit_scale(dtype: str) -> Tensor:
    """OpenCLIP's logit_scale, which SDXL never computes with and diffusers' classes lack: ln 100, where training clips
    it (arXiv 2103.00020, section 2.5)."""
    bits = cast(np.float32(math.log(100)).tobytes(), "float32", dtype)
    return Tensor(dtype, (), (), constant=bytes(memoryview(bits)))

"""Adapter files: safetensors with kohya's names, as ComfyUI, A1111 and diffusers read them.

`lora_unet_input_blocks_4_1_proj_in.lora_down.weight` is a part of the adapter of model.diffusion_model.
input_blocks.4.1.proj_in.weight, and `….alpha` the numerator of its scale. Written are the UNet's layers by Stability's
names and the text encoders' (lora_te1_, lora_te2_) by transformers'. Read are also kohya's names with diffusers' modules,
and diffusers' own (unet.….lora_A.weight, peft.py)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.stage import StageError, shown
from pipeline.weights import check, diffusers, layout, provenance, safetensors
from pipeline.weights.adapters import kinds, peft
from pipeline.weights.names import PREFIX, canonical, part_of
from pipeline.weights.numeric import to_float32
from pipeline.weights.tensor import Tensor

_PART = re.compile(
    r"(?P<layer>.+?)\.(?P<part>alpha|dora_scale|lora_(?:down|up)\.weight|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)"
)
_TUCKER = re.compile(r".+\.(lora_mid\.weight|hada_t[12]|lokr_t[12])")
_KOHYA = {"unet": "lora_unet_", "clip_l": "lora_te1_", "clip_g": "lora_te2_"}
_ONE_ENCODER = "lora_te_"
_DTYPES = ("float32", "float16", "bfloat16")
_SETS = (
    {kinds.DOWN, kinds.UP},
    {f"hada_w{n}_{side}" for n in (1, 2) for side in "ab"},
    {"lokr_w1", "lokr_w2"},
    {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
)


@dataclass(frozen=True)
class Adapter:
    """Of one weight, or of `rows` of it from the first number on, up to the second."""

    path: Path  # of its file
    parts: dict[str, Tensor]
    alpha: float | None
    rows: tuple[int, int] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The parts as float32."""
        return {name: values(tensor) for name, tensor in self.parts.items()}


def values(tensor: Tensor) -> np.ndarray:
    """A tensor's values, float32."""
    return to_float32(np.ascontiguousarray(tensor.array()), tensor.dtype).reshape(tensor.shape)


def layer_name(weight: str, part: str = "unet") -> str:
    """kohya's name of the layer of a weight of the UNet, or of the text encoder `part`, named as Stability does, with or
    without the prefix. bigG's joined projections are three layers, as if they were …attn.q_proj.weight and so on."""
    module = weight.removeprefix(PREFIX[part]).removesuffix(".weight")
    if part != "unet":
        module = diffusers.text_module(part, module)
    return _KOHYA[part] + module.replace(".", "_")


def write(
    path: Path, parts: Mapping[str, np.ndarray], alphas: Mapping[str, float], metadata: Mapping[str, str]
) -> None:
    """`parts`: name in the file, such as lora_unet_out_2.lora_up.weight -> values, all of one dtype, float32 or float16;
    `alphas`: layer -> alpha, of the same dtype where it can have it. To `metadata` come the hashes by which tools know the file."""
    dtype = next(iter(parts.values())).dtype
    # an alpha that float16 rounds would change the adapter
    with np.errstate(over="ignore"):
        exact = {
            alpha: dtype if float(np.array(alpha).astype(dtype)) == alpha else np.float32 for alpha in alphas.values()
        }
    tensors = dict(parts)
    tensors |= {f"{layer}.{kinds.ALPHA}": np.array(alpha, exact[alpha]) for layer, alpha in alphas.items()}
    tensors = dict(sorted(tensors.items()))
    digest = hashlib.sha256(b"".join(value.tobytes() for value in tensors.values())).hexdigest()
    metadata = {**metadata, provenance.HASH: f"0x{digest}", "sshs_model_hash": digest}
    entries = {name: (value.dtype.name, value.shape) for name, value in tensors.items()}
    with safetensors.Writer(path, entries, metadata) as writer:
        for name, value in tensors.items():
            writer.add(name, value)


def read(path: Path, config: SDXLConfig) -> dict[str, list[Adapter]]:
    """Weight's name in Stability's layout -> its adapters: one, or up to three of a joined weight's rows. Reads headers
    and alphas. Raises StageError for what is no adapter of this configuration."""
    tensors, metadata = _contents(path)
    try:
        return _adapters(path, tensors, metadata, config)
    except StageError:
        try:
            name, _ = _fitting(path, tensors, metadata)
        except StageError:
            name = None
        if name is None:
            raise
        own = next(own for own, one in CONFIGS.items() if one is config)
        raise StageError(
            f"{path} is an adapter of model.config {name}, and model.config is {own}; set it, or take another file"
        ) from None


def read_any(path: Path) -> tuple[str, dict[str, list[Adapter]]]:
    """The name of the configuration of which the file is an adapter, and what `read` gives. Raises StageError."""
    return _fitting(path, *_contents(path))


def _fitting(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[str, dict[str, list[Adapter]]]:
    faults = []
    for name, config in CONFIGS.items():
        try:
            return name, _adapters(path, tensors, metadata, config)
        except StageError as error:
            faults.append(error)
    raise faults[0]


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise StageError(f"{path} {found}; wanted an adapter, a .safetensors file")
    return safetensors.read(path), safetensors.metadata(path)


def _adapters(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], config: SDXLConfig
) -> dict[str, list[Adapter]]:
    found: dict[str, dict[str, Tensor]] = {}
    faults: list[str] = []
    for name, tensor in tensors.items():
        match = _PART.fullmatch(peft.renamed(name))
        if match is None:
            why = "; convolutions in Tucker's form are not read" if _TUCKER.fullmatch(name) else ""
            faults.append(f"{check.described(name, tensor)}, which is no part of an adapter{why}")
        elif tensor.dtype not in _DTYPES:
            faults.append(f"{check.described(name, tensor)}, wanted {', '.join(_DTYPES)}")
        else:
            parts = found.setdefault(match["layer"], {})
            if match["part"] in parts:
                faults.append(f"{check.described(name, tensor)}, which is there by another name too")
            parts[match["part"]] = _along_outputs(name, tensor)
    alpha_of = peft.alphas(metadata, path)
    places, shapes = _places(config), layout.shapes(config)
    adapters: dict[str, list[Adapter]] = {}
    taken: dict[tuple[str, tuple[int, int] | None], str] = {}
    for layer, parts in found.items():
        if layer not in places:
            faults.append(f"{shown(layer)}, which is no layer of this model.config")
            continue
        weight, rows = place = places[layer]
        alpha = parts.pop(kinds.ALPHA, None)
        if (first := taken.setdefault(place, layer)) != layer:
            faults.append(f"{shown(layer)} is the layer of {shown(first)}; keep one of them")
            continue
        shape = shapes[weight] if rows is None else (rows[1] - rows[0], *shapes[weight][1:])
        if fault := _fault(parts, shape):
            faults.append(f"{shown(layer)} {fault}")
        elif alpha is not None and alpha.count != 1:
            faults.append(f"{check.described(f'{layer}.alpha', alpha)}, wanted a number")
        elif alpha is not None and not np.isfinite(values(alpha)).all():
            faults.append(f"{shown(layer)}.alpha is {values(alpha).reshape(())}, wanted a finite number")
        else:
            given = float(values(alpha).reshape(())) if alpha is not None else None
            number = alpha_of(layer, kinds.rank_of(parts) or 1) if given is None else given
            adapters.setdefault(weight, []).append(Adapter(path, parts, number, rows))
    if faults or not adapters:
        faults, why = faults or ["no tensors"], ""
        if not found and any(part_of(canonical(name)) for name in tensors):
            why = ", but a model, which model.base takes"
        elif any(layer.startswith(_ONE_ENCODER) for layer in found):
            why = (
                f": {_ONE_ENCODER}… is of Stable Diffusion 1 or 2, and SDXL's text encoders are lora_te1_ and lora_te2_"
            )
        elif any(peft.is_of_peft(layer) for layer in found):
            why = (
                ", but of PEFT's save_pretrained, which keeps the alpha in a file beside it; save it by diffusers' "
                "save_lora_weights"
            )
        elif found and not any(layer in places for layer in found):
            why = ", for none of its layers is: it was made for another model"
        raise StageError(f"{path} is not an adapter of this model.config{why}:\n{check.listed('faults', faults)}")
    return adapters


def _along_outputs(name: str, tensor: Tensor) -> Tensor:
    """PEFT's magnitudes of a convolution, (1, o, 1, 1), as (o, 1, 1, 1)."""
    if "lora_magnitude_vector" not in name or len(tensor.shape) != 4:
        return tensor
    first, second, *rest = tensor.shape
    return replace(tensor, shape=(second, first, *rest))


def _places(config: SDXLConfig) -> dict[str, tuple[str, tuple[int, int] | None]]:
    """A layer's name in files -> the weight, and its rows where several layers are joined in it."""
    found = {}
    for name, shape in layout.shapes(config).items():
        part = part_of(name)
        if part not in _KOHYA or len(shape) < 2 or not name.endswith("weight"):
            continue
        own = name.removeprefix(PREFIX[part])
        if part == "unet":
            found[layer_name(name)] = name, None
        recipe = diffusers.recipe(part, own, shape, config)
        height = shape[0] // len(recipe.parts)
        for number, theirs in enumerate(recipe.parts):
            module = theirs.removesuffix(".weight")
            rows = None if len(recipe.parts) == 1 else (number * height, (number + 1) * height)
            of_diffusers = f"{diffusers.FOLDER[part]}.{module}"
            # transformers from 5.6 on has no `text_model.` in its names
            for layer in (
                _KOHYA[part] + module.replace(".", "_"), of_diffusers, of_diffusers.replace(".text_model.", "."),
            ):  # fmt: skip
                found[layer] = name, rows
    return found


def _fault(parts: Mapping[str, Tensor], shape: layout.Shape) -> str:
    """What keeps parts from being an adapter of a weight of this shape; "" for nothing."""
    names = set(parts) - {kinds.MAGNITUDE}
    if names not in _SETS:
        given = f"the parts {', '.join(sorted(parts))}" if parts else "no parts but its alpha"
        return f"has {given}, wanted those of a LoRA, LoHa or LoKr"
    of = {name: tensor.shape for name, tensor in parts.items()}
    outputs, width = shape[0], prod(shape[1:])
    if any(0 in one or len(one) > 4 for one in of.values()) or any(len(of[name]) < 2 for name in names):
        sound = False
    elif kinds.UP in of:
        up, down = of[kinds.UP], of[kinds.DOWN]
        if up[1] != down[0]:
            return f"has a {kinds.UP} of rank {up[1]} and a {kinds.DOWN} of rank {down[0]}, wanted one rank"
        sound = up[:2] == (outputs, down[0]) and prod(up[2:]) == 1 and prod(down[1:]) == width
    elif "hada_w1_a" in of:
        sound = all(_product(of, f"hada_w{n}") == (outputs, width) for n in (1, 2))
    else:
        (o1, i1), (o2, i2) = (_product(of, f"lokr_w{n}") for n in (1, 2))
        sound = o1 * o2 == outputs and i1 * i2 == width and shape[1] % i1 == 0
    if kinds.MAGNITUDE in of and (of[kinds.MAGNITUDE][:1] != (outputs,) or prod(of[kinds.MAGNITUDE]) != outputs):
        sound = False
        if prod(of[kinds.MAGNITUDE]) in (width, shape[1]):
            return f"has a {kinds.MAGNITUDE} {of[kinds.MAGNITUDE]} along the inputs, wanted ({outputs}, 1), one of each output"
    given = ", ".join(f"{name} {one}" for name, one in of.items())
    return "" if sound else f"({given}) does not fit a weight of shape {shape}"


def _product(of: Mapping[str, layout.Shape], name: str) -> tuple[int, int]:
    """The shape (rows, all the rest) of a matrix, or of its two factors' product; (0, 0) where they do not fit."""
    if name in of:
        return of[name][0], prod(of[name][1:])
    (rows, rank), (again, width) = of[f"{name}_a"][:2], (of[f"{name}_b"][0], prod(of[f"{name}_b"][1:]))
    return (rows, width) if rank == again and len(of[f"{name}_a"]) == 2 else (0, 0)

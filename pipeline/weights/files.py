"""The tensors of weight files, whatever form they have: safetensors, MindSpore's .ckpt, a diffusers model's folder.

Only headers are read here, and nothing is ever unpickled."""

import json
import re
from pathlib import Path

from pipeline.hub import hint
from pipeline.stage import StageError, shown
from pipeline.weights import ckpt, safetensors, signature
from pipeline.weights.diffusers import FOLDER
from pipeline.weights.tensor import Tensor

Found = dict[str, Tensor]
_SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")
_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$")
_LONGEST_NAME = 255  # bytes that a file's name may have
MAX_JSON = 100_000_000  # bytes of JSON; as the header of a safetensors file


def has_parts(path: Path) -> bool:
    """Whether the path is a folder of models, and not a file or the folder of one file's shards with their index."""
    return path.is_dir() and (any((path / part).is_dir() for part in FOLDER.values()) or not _indices(path))


def read_file(path: Path) -> Found:
    """The tensors of a safetensors file, also as the folder of its shards and their index, or of a MindSpore
    checkpoint; which of the two a file is, its first bytes say.

    Raises StageError for any other file, saying what it is, and for a damaged one."""
    if path.is_dir():
        indices = _indices(path)
        if len(indices) != 1:
            names = shown(", ".join(index.name for index in indices))
            raise StageError(f"{path} has the indices {names}; wanted one: take the others out")
        return _read(_read_index(indices[0]))
    if not path.exists():
        raise StageError(
            f"{path} does not exist; wanted a safetensors file, a MindSpore .ckpt or a diffusers folder (model.base, "
            f"model.vae, train.init_from){hint(path)}"
        )
    if part := _part_of_sharded(path):
        folder = path.absolute().parent
        model = folder.parent if folder.name in FOLDER.values() else folder
        raise StageError(f"{path} is {part}; give the folder, {model}, which DVC then watches as a whole")
    return ckpt.read(path) if is_ckpt(path) else safetensors.read(path)


def is_ckpt(path: Path) -> bool:
    """Whether the file is MindSpore's, by its first bytes. Raises OSError."""
    with open(path, "rb") as file:
        prefix = file.read(signature.LENGTH)
    return ckpt.begins(prefix) and not safetensors.begins(prefix)  # a header of 10 bytes begins as a .ckpt does


def _part_of_sharded(path: Path) -> str | None:
    """What a file is that is a part of sharded weights, by its name; None for all others."""
    if _INDEX.search(path.name):
        return "the index of sharded weights"
    shard = _SHARD.search(path.name)
    if not shard or int(shard[1]) == 1:
        return None
    has_index = bool(_indices(path.parent))
    lacks = "" if has_index else ", whose index, *.safetensors.index.json, is not beside it: put it there"
    return f"one of {int(shard[1])} shards{lacks}"


def read_folder(folder: Path) -> Found:
    """The tensors of one model's folder as save_pretrained writes it: one file, or shards with an index."""
    return _read(_files(folder))


def _read(files: dict[Path, set[str] | None]) -> Found:
    tensors: Found = {}
    for file, names in files.items():
        found = safetensors.read(file)
        if names is not None and set(found) != names:
            odd = shown(min(set(found) ^ names))
            raise StageError(
                f"{file} does not hold the tensors that the folder's index says, first {odd}; download it again"
            )
        tensors |= found
    return tensors


def read_json(path: Path, what: str) -> dict:
    """A JSON object. Raises StageError that says the file is not `what` when it is none, or larger than MAX_JSON."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is not {what}, which is JSON: {shown(str(error))}; download it again") from None
    if not isinstance(found, dict):
        raise StageError(f"{path} is not {what}: wanted a JSON object, found {shown(repr(found))}; download it again")
    return found


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files of a folder, each with the names that an index gives it (None: no index)."""
    for stem in ("diffusion_pytorch_model", "model"):
        for variant in _variants(folder, stem):
            single = folder / f"{stem}{variant}.safetensors"
            if single.is_file():
                return {single: None}
            for index in (f"{stem}{variant}.safetensors.index.json", f"{stem}.safetensors.index{variant}.json"):
                if (folder / index).is_file():
                    return _read_index(folder / index)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        raise StageError(f"{folder} has pickled weights only ({', '.join(pickled)}), which can run code when they are "
                         "opened and so are not read; wanted *.safetensors (save_pretrained writes them)")  # fmt: skip
    absent = f"does not exist{_single(folder.parent)}"
    what = f"has {shown(', '.join(there)) or 'no files'}" if folder.is_dir() else absent
    raise StageError(f"{folder} {what}; wanted diffusion_pytorch_model.safetensors or model.safetensors, a variant "
                     "such as .fp16 or shards, in each of unet/, vae/, text_encoder/ and text_encoder_2/")  # fmt: skip


def _indices(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors.index*.json"))


def _single(folder: Path) -> str:
    """What to do with the single files, or the shards of one, that lie in a folder which should hold models."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    single = [name for name in files if not _SHARD.search(name)]
    if single:
        return f" (for a single file give its own path: {shown(single[0])})"
    if files:
        return (f" ({shown(files[0])} is a shard of a single file: put the shards' index, *.safetensors.index.json,"
                " beside them, or join them into one file)")  # fmt: skip
    return ""


def _variants(folder: Path, stem: str) -> list[str]:
    """What diffusers puts behind the stem: nothing, which is taken first; .fp16; then others such as .bf16."""
    form = re.compile(rf"{stem}(\.\w+)?\.safetensors(?:\.index(\.\w+)?\.json)?")
    matches = [match for path in folder.glob(f"{stem}.*") if (match := form.fullmatch(path.name))]
    others = {match[1] or match[2] or "" for match in matches} - {"", ".fp16"}
    return ["", ".fp16", *sorted(others)]


def _read_index(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json(index, "an index of sharded weights").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise StageError(f"{index} is not an index of sharded weights: it has no weight_map of names to files; "
                         "download it again")  # fmt: skip
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        name_only = file not in ("", "..") and "\0" not in file and Path(file).name == file
        if not name_only or len(file.encode(errors="replace")) > _LONGEST_NAME:
            raise StageError(f"{index} is not an index of this folder's weights: it names {shown(file)!r}")
        files.setdefault(index.with_name(file), set()).add(name)
    missing = [shown(file.name) for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
        raise StageError(f"{index} names files that are not there: {', '.join(missing[:10])}{more}; download them")
    return files

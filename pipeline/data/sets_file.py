"""Where a data set says what its sets are: sets.yaml (our own form), dataset.toml (kohya's) or concepts.json
(OneTrainer's) in its folder, which may be far away, or folders named like kohya's `10_name`."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import params, unknown_keys
from pipeline.data import far, kohya, onetrainer
from pipeline.data.folder import Folder
from pipeline.data.kinds import SETS, is_metadata
from pipeline.data.parquet import ParquetFiles
from pipeline.data.part import is_far, is_plain, some
from pipeline.data.said import MOST_TIMES
from pipeline.data.sets import WHOLE, Set, SetsError
from pipeline.data.sources import Source
from pipeline.data.variants import Rules
from pipeline.data.webdataset import WebDataset

_LONGEST = 1 << 20  # bytes of such a file
_MOST = 1000  # sets
_REPEATED = re.compile(r"(0|[1-9][0-9]{0,2})_(.*)", re.S)  # a year, or 05_ of an order, is no number of repeats
_RULES = ("shuffle_tags", "keep_tags", "drop_tags", "separator", "wildcards", "variants")
_ORIGINS = {"txt": ".txt", "caption": ".caption", "table": ""}
_LIKE = {  # name -> others that its users write
    "sets.yaml": r"sets?\.ya?ml",
    "dataset.toml": r"datasets?\.toml",
    "concepts.json": r"concepts?\.json",
    "metadata.jsonl": r"metadata\.json",
}
_Times = Annotated[float, Field(ge=0, le=MOST_TIMES)]


class _Set(BaseModel):
    """A set as sets.yaml has it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    folder: params.Text
    name: params.Text | None = None
    repeats: _Times | None = None
    samples: Annotated[float, Field(ge=0, le=1e9)] | None = None
    weight: _Times | None = None
    class_images: bool = False
    loss_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    caption_dropout: params.Share | None = None
    caption: params.Text = ""
    prefix: params.Text = ""
    suffix: params.Text = ""
    resolution: params.Side | Annotated[list[params.Side], Field(min_length=1, max_length=16)] | None = None
    flip: bool | None = None
    crop: Literal["center", "random"] | None = None
    crops: Annotated[int, Field(gt=0, le=1000)] | None = None
    background: Annotated[list[params.Byte], Field(min_length=3, max_length=3)] | None = None
    masks: params.Text | None = None
    alpha_mask: bool | None = None
    chances: dict[Literal["txt", "caption", "table"], Annotated[float, Field(gt=0, le=1000)]] = {}
    shuffle_tags: bool = False
    keep_tags: Annotated[int, Field(ge=0, le=10_000)] = 0
    drop_tags: params.Share = 0.0
    separator: Annotated[params.Text, Field(min_length=1, max_length=100)] = ","
    wildcards: bool = False
    variants: Annotated[int, Field(gt=0, le=1000)] | None = None


class File(BaseModel):
    """sets.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sets: Annotated[list[_Set], Field(min_length=1, max_length=_MOST)]


def find(path: str, source: Source, variants: int = 8, seed: int = 0) -> tuple[tuple[Set, ...], list[str]]:
    """The sets of the data set at `path`, whose `source` is open, and what to say about them. variants, seed: of
    captions, where their set draws some (params.index). Raises SetsError, OSError."""
    sets, notes = _find(path, source)
    for one in sets:
        if one.masks in ("", one.folder):
            raise SetsError(
                f"the set {one.name!r}: its masks are in {one.folder or path!r} like its pictures; wanted a "
                "folder of their own, or name.mask.png beside name.png"
            )
        if one.masks and not isinstance(source, Folder):
            raise SetsError(
                f"the set {one.name!r}: masks of tars are their members key.mask.png, no folder; and Parquet has none"
            )
    return tuple(one.rules and replace(one, rules=_counted(one.rules, variants, seed)) or one for one in sets), notes


def _counted(rules: Rules, variants: int, seed: int) -> Rules:
    return replace(rules, count=rules.count or variants, seed=seed)


def _find(path: str, source: Source) -> tuple[tuple[Set, ...], list[str]]:
    if is_there := os.path.isdir(path):
        places = [os.path.join(path, name) for name in SETS if os.path.lexists(os.path.join(path, name))]
    else:
        places = [] if isinstance(source, Folder) else list(source.sets)
    if len(places) > 1:
        names = map(os.path.basename, places) if is_there else places
        raise SetsError(f"{path} holds {' and '.join(names)}, and each says what its sets are; keep one of them")
    if not places:
        sets, notes = _repeated(path) if isinstance(source, Folder) else (WHOLE, [])
        return sets, [*notes, *_misnamed(path)] if is_there else notes
    (place,) = places
    if is_there:
        inside, load = _folders(path, place), lambda file: Path(path, file).read_bytes()
    else:
        inside, load = _far_folders(source, place), lambda file: far.whole(_joined(source.root, file), _LONGEST)
    data = Path(place).read_bytes() if is_there else far.whole(place, _LONGEST)
    return _READERS[os.path.basename(place)](_text(data, place), place, inside, load)


def _misnamed(root: str) -> list[str]:
    """What to say of files that are perhaps meant for sets or captions, and are not read as such."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not is_metadata(entry.name))
    meant = [(name, one) for name in names for one, form in _LIKE.items() if re.fullmatch(form, name, re.I)]
    notes = [f"{name} is not read; did you mean {one}?" for name, one in meant]
    below = [
        f"{name}/{one}" for name in _folders_in(root) for one in SETS if os.path.isfile(os.path.join(root, name, one))
    ]
    notes += [f"{some(below)}: a file of sets counts right in the data set alone; move it there"] if below else []
    return notes


def _text(data: bytes, place: str) -> str:
    if len(data) > _LONGEST:
        raise SetsError(f"{place}: {len(data)} bytes is too long for a file of sets (above {_LONGEST})")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SetsError(f"{place}: not UTF-8: {error}; write it as UTF-8") from None


def _folders(root: str, place: str) -> Callable[[str, str], str]:
    def inside(path: str, key: str) -> str:
        """A folder or file that a set names, as a path in the data set; empty for the whole of it."""
        beside, whole = os.path.join(root, path), os.path.realpath(root)
        try:
            full = os.path.realpath(beside if os.path.exists(beside) else path)
            there = os.path.exists(full)
        except ValueError:  # a null character
            there = False
        if not there:
            raise SetsError(f"{place}: {key}: there is no {path!r} in {root}")
        if full != whole and not full.startswith(whole.rstrip("/") + "/"):
            raise SetsError(
                f"{place}: {key}: {path!r} is outside of {root}, where DVC would see no change; move it there, or give "
                "data.images the folder that holds all of them"
            )
        relative = os.path.relpath(full, whole)
        return "" if relative == "." else relative

    return inside


def _far_folders(source: WebDataset | ParquetFiles, place: str) -> Callable[[str, str], str]:
    """As `_folders`, of a file at the URL `place`: paths are relative to its folder, or URLs."""
    root = place.rpartition("/")[0]
    files = source.tars if isinstance(source, WebDataset) else source.files
    there = [_joined(source.root, name) for name in (*files, *source.others)]

    def inside(path: str, key: str) -> str:
        if is_far(path):
            full = path.rstrip("/")
        elif is_plain(path):
            full = _joined(root, posixpath.normpath(path)).removesuffix("/.")
        else:
            raise SetsError(f"{place}: {key}: {path!r} is outside of {root}; name what is there, relative to it")
        if full != root and not any(url == full or url.startswith(f"{full}/") for url in there):
            raise SetsError(f"{place}: {key}: there is no {path!r} in {root}")
        return full.removeprefix(source.root).removeprefix("/") if source.root else full

    return inside


def _joined(root: str, path: str) -> str:
    return f"{root}/{path}" if root else path


def _own(
    text: str, place: str, inside: Callable[[str, str], str], load: Callable[[str], bytes]
) -> tuple[tuple[Set, ...], list[str]]:
    try:
        found = File.model_validate(params.parse(text, place)).sets
    except params.ParamsError as error:
        raise SetsError(str(error)) from None
    except ValidationError as error:
        lines = "\n".join(map(_line, error.errors()[:20]))
        raise SetsError(f"{place} cannot be used as it stands:\n{lines}") from None
    sets = []
    for number, one in enumerate(found):
        key = f"sets.{number}"
        given = [name for name in ("repeats", "samples", "weight") if getattr(one, name) is not None]
        if len(given) > 1:
            raise SetsError(f"{place}: {key}: {' and '.join(given)} both say how often its pictures are seen; give one")
        settings = one.model_dump(exclude={"name", "folder", "resolution", *_RULES}) | {
            "folder": inside(one.folder, f"{key}.folder")
        }
        several = one.resolution if isinstance(one.resolution, list) else [one.resolution]
        settings["resolutions"] = tuple(dict.fromkeys(filter(None, several)))
        settings["background"] = one.background and tuple(one.background)
        settings["masks"] = one.masks and inside(one.masks, f"{key}.masks")
        settings["chances"] = tuple((_ORIGINS[name], chance) for name, chance in one.chances.items())
        settings["rules"] = _rules(one)
        sets.append(Set(name=one.name or one.folder, **settings))
    weighted = [one.name for one in sets if one.weight is not None]
    idle = "is the only one with a weight, which changes nothing: sets share by it; give another one too, or repeats"
    notes = [f"set {weighted[0]} {idle}"] if len(weighted) == 1 else []
    often = Counter(one.name for one in sets)
    twice = [name for name, count in often.items() if count > 1]
    notes += [f"several sets are named {some(twice)}: give each a name to tell them apart"] if twice else []
    return tuple(sets), notes


def _rules(one: _Set) -> Rules | None:
    if not (one.shuffle_tags or one.drop_tags or one.wildcards):
        return None
    return Rules(
        count=one.variants or 0,  # 0: as many as params.yaml says
        shuffle=one.shuffle_tags,
        keep=one.keep_tags,
        drop=one.drop_tags,
        separator=one.separator,
        joined=one.separator if one.separator.endswith(" ") else f"{one.separator} ",
        wildcards=one.wildcards,
    )


def _line(error: dict[str, Any]) -> str:
    *place, last = error["loc"] or ("the whole file",)
    message = error["msg"]
    if last == "[key]":  # of a mapping
        last, message = place.pop(), f"there is no such key; {message.replace('Input should be', 'there are')}"
    elif error["type"] == "extra_forbidden":
        message = unknown_keys.words(File, [*place, last])
    elif error["type"] == "missing":
        message = "it is not there, and has to be"
    elif error["type"] == "model_type":
        message = f"wanted {'a mapping whose key sets has the list' if not error['loc'] else 'a mapping of its keys'}"
    key = ".".join(map(str, [*place, last]))
    return f"  {params.clip(key)}: {message} (found {params.short(error['input'])})"


def _repeated(root: str) -> tuple[tuple[Set, ...], list[str]]:
    """kohya's folders: 10_name repeats its pictures ten times, and those without a caption get the name; 0_name is left
    out (sd-scripts, library/config_util.py: num_repeats < 1)."""
    names = _folders_in(root)
    matches = [match for name in names if (match := _REPEATED.fullmatch(name))]
    if not matches:
        return WHOLE, _misplaced(root, names)
    sets = [
        Set(match[0], folder=match[0], repeats=float(match[1]), caption=match[2].strip())
        for match in matches
        if match[1] != "0"
    ]
    none = tuple(match[0] for match in matches if match[1] == "0")
    notes = ["repeats are those of the folders' names, kohya's 10_name; a sets.yaml in the data set says otherwise"]
    notes += [f"left out, as kohya does with 0 repeats: {some(list(none))}; rename what is to be used"] if none else []
    return (*sets, Set("others", rest=True, without=none)), notes


def _folders_in(root: str) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _misplaced(root: str, names: list[str]) -> list[str]:
    """What to say of folders like kohya's 10_name that are not where they count, which is right below the root."""
    root = os.path.realpath(root)
    if _REPEATED.fullmatch(os.path.basename(root)):
        return [
            f"the repeats of the name {os.path.basename(root)} do not count, as it is the data set itself: give the folder that "
            f"it is in ({os.path.dirname(root)})"
        ]
    inside = {name: list(filter(_REPEATED.fullmatch, _folders_in(os.path.join(root, name)))) for name in names}
    found = {name: folders for name, folders in inside.items() if folders}
    if not found:
        return []
    folders = [f"{name}/{folder}" for name, folders in found.items() for folder in folders]
    whole = " or ".join(os.path.join(root, name) for name in found)
    return [
        f"the repeats of {some(folders)} do not count, as these are not right below the data set: give {whole}, or write a "
        "sets.yaml, which has class_images for kohya's reg folder too"
    ]


_READERS = {"sets.yaml": _own, "dataset.toml": kohya.read, "concepts.json": onetrainer.read}

"""OneTrainer's concepts (its concepts.json, or `concepts` of a whole configuration) as sets."""

import json
import re
from collections.abc import Callable

from pipeline.data.captions import CaptionError, lines
from pipeline.data.part import SourceError
from pipeline.data.sets import Set, SetsError
from pipeline.data.variants import Rules
from pipeline.unknown_keys import meant

# Ends of the names of what lies beside a picture and is none.
BESIDE = ("-masklabel", "-condlabel")
_MOST = 100_000
_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "path": (str,),
    "enabled": (bool,),
    "type": (str,),
    "validation_concept": (bool,),  # of older versions, as is `repeats`
    "include_subdirectories": (bool,),
    "balancing": (int, float),
    "repeats": (int, float),
    "balancing_strategy": (str,),
    "loss_weight": (int, float),
    "image": (dict,),
    "text": (dict,),
}
_IDLE = {"seed", "image_variations", "text_variations", "concept_stats", "__version"}
_IMAGE = ("enable_crop_jitter", "enable_random_flip", "enable_resolution_override", "resolution_override")
_IMAGE_NOT_DONE = (
    "flip", "rotate", "brightness", "contrast", "saturation", "hue", "circular_mask_shrink", "mask_rotate_crop",
)  # fmt: skip
_TEXT = {
    "enable_tag_shuffling": (bool,),
    "tag_delimiter": (str,),
    "keep_tags_count": (int,),
    "tag_dropout_enable": (bool,),
    "tag_dropout_mode": (str,),
    "tag_dropout_probability": (int, float),
    "tag_dropout_special_tags_mode": (str,),
    "caps_randomize_enable": (bool,),
}


def read(
    text: str, place: str, inside: Callable[[str, str], str], load: Callable[[str], bytes]
) -> tuple[tuple[Set, ...], list[str]]:
    """The sets of a file, and which of its settings have no effect here. `inside`: a path that it names and its key ->
    that path in the data set; `load`: a file there -> its bytes. Raises SetsError."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetsError(f"{place} is not JSON: {error}") from None
    concepts = tree.get("concepts") if isinstance(tree, dict) else tree
    if not isinstance(concepts, list) or not all(isinstance(one, dict) for one in concepts):
        raise SetsError(f"{place}: wanted a list of OneTrainer's concepts, or an object with it under concepts")
    sets, notes = [], []
    for number, concept in enumerate(concepts):
        where = f"{place}: {number}"
        _check(concept, where)
        kind = concept.get("type", "VALIDATION" if concept.get("validation_concept") else "STANDARD")
        if not concept.get("enabled", True):
            continue
        if kind == "VALIDATION":
            notes.append(
                f"concept {number} is one of validation and is not read: train.validation_share holds pictures out"
            )
            continue
        if kind != "STANDARD":
            raise SetsError(f"{where}.type: found {kind[:100]!r}, which is not done here; wanted STANDARD")
        sets.append(_set(concept, where, number, inside, load))
    if not sets:
        raise SetsError(f"{place}: no concept that is enabled")
    return tuple(sets), list(dict.fromkeys(notes))


def _set(
    concept: dict, where: str, number: int, inside: Callable[[str, str], str], load: Callable[[str], bytes]
) -> Set:
    balancing = float(concept.get("balancing", concept.get("repeats", 1)))
    strategy, text = concept.get("balancing_strategy", "REPEATS"), concept.get("text", {})
    source = text.get("prompt_source", "sample")
    if strategy not in ("REPEATS", "SAMPLES"):
        raise SetsError(f"{where}.balancing_strategy: found {strategy[:100]!r}, wanted REPEATS or SAMPLES")
    if source not in ("sample", "concept", "filename"):
        raise SetsError(f"{where}.text.prompt_source: found {str(source)[:100]!r}, wanted sample, concept or filename")
    return Set(
        name=concept.get("name") or f"concept {number}",
        folder=inside(concept["path"], f"{number}.path"),
        below=concept.get("include_subdirectories", False),
        repeats=balancing if strategy == "REPEATS" else None,
        samples=balancing if strategy == "SAMPLES" else None,
        loss_weight=float(concept.get("loss_weight", 1)),
        extension=".txt",
        file_names=source == "filename",
        captions=_prompts(text.get("prompt_path"), where, inside, load) if source == "concept" else (),
        rules=_rules(text, where),
        **_pictures(concept.get("image", {}), where),
        left_out=BESIDE,
    )


def _pictures(image: dict, where: str) -> dict:
    """What the set says of flip, crop and resolution."""
    jitter, text = image.get("enable_crop_jitter"), str(image.get("resolution_override", ""))
    sides = [side.strip() for side in text.split(",")] if image.get("enable_resolution_override") else []
    if not all(re.fullmatch("[1-9][0-9]{0,4}", side) and int(side) <= 16384 for side in sides):
        raise SetsError(f"{where}.image.resolution_override: found {text[:100]!r}, wanted sides in pixels, such as 768")
    return {
        "flip": image.get("enable_random_flip"),
        "crop": {True: "random", False: "center", None: None}[jitter],
        "resolutions": tuple(dict.fromkeys(map(int, sides))),
    }


def _rules(text: dict, where: str) -> Rules | None:
    """Shuffling and dropping of tags."""
    drop = float(text.get("tag_dropout_probability", 0)) if text.get("tag_dropout_enable") else 0.0
    if not (text.get("enable_tag_shuffling") or drop):
        return None
    if drop and (text.get("tag_dropout_mode", "FULL"), text.get("tag_dropout_special_tags_mode", "NONE")) != (
        "RANDOM",
        "NONE",
    ):
        raise SetsError(f"{where}.text: of tag dropout the mode RANDOM without special tags is done here, and no other")
    separator = text.get("tag_delimiter", ",")
    if not separator or not 0 <= drop <= 1 or not 0 <= text.get("keep_tags_count", 1) <= 10_000:
        raise SetsError(f"{where}.text: wanted a delimiter, a chance of 0 to 1 and 0 to 10,000 tags that are kept")
    shuffle, keep = bool(text.get("enable_tag_shuffling")), text.get("keep_tags_count", 1)
    return Rules(0, 0, shuffle, keep, drop, separator, f"{separator} ")


def _prompts(
    path: object, where: str, inside: Callable[[str, str], str], load: Callable[[str], bytes]
) -> tuple[str, ...]:
    """The lines of the file that has the captions of all of a concept's pictures."""
    if not isinstance(path, str):
        raise SetsError(f"{where}.text: prompt_source is concept, and there is no prompt_path")
    try:
        file = inside(path, "text.prompt_path")
        return tuple(text for text, _ in lines(load(file), file)) or ("",)
    except (CaptionError, SourceError, OSError) as error:
        raise SetsError(f"{where}.text.prompt_path: {error}") from None


def _check(concept: dict, where: str) -> None:
    for key, value in concept.items():
        if key in _TYPES:
            if not isinstance(value, _TYPES[key]) or isinstance(value, bool) and bool not in _TYPES[key]:
                raise SetsError(f"{where}.{key}: found {str(value)[:100]!r} of another type than OneTrainer writes")
        elif key not in _IDLE:
            do = meant(key, [*_TYPES, *_IDLE]) or "remove it"
            raise SetsError(f"{where}: {key[:100]} is no setting of a concept that is known here; {do}")
    if "path" not in concept:
        raise SetsError(f"{where}: no path")
    for key, most in (("balancing", 1e9), ("repeats", _MOST), ("loss_weight", 1000)):
        if not 0 <= concept.get(key, 0) <= most:
            raise SetsError(f"{where}.{key}: found {str(concept[key])[:100]}, wanted 0 to {most:g}")
    for key, value in concept.get("image", {}).items():
        if key in _IMAGE[:3] and not isinstance(value, bool):
            raise SetsError(f"{where}.image.{key}: found {str(value)[:100]!r}, wanted true or false")
        if value is True and key not in _IMAGE and any(key.endswith(end) for end in _IMAGE_NOT_DONE):
            raise SetsError(f"{where}.image: {key[:100]} is not done here; switch it off")
    for key, wanted in _TEXT.items():
        value = concept.get("text", {}).get(key, wanted[0]())
        if not isinstance(value, wanted) or isinstance(value, bool) and bool not in wanted:
            raise SetsError(f"{where}.text.{key}: found {str(value)[:100]!r} of another type than OneTrainer writes")
    if concept.get("text", {}).get("caps_randomize_enable"):
        raise SetsError(f"{where}.text: caps_randomize_enable is not done here; switch it off")

"""kohya's dataset.toml (sd-scripts, docs/config_README-en.md) as sets."""

import tomllib
from collections.abc import Callable

from pipeline.data.sets import Set, SetsError
from pipeline.data.variants import Rules
from pipeline.unknown_keys import meant

# What params.yaml says for the whole data set, and keys that change no picture and no caption.
_ELSEWHERE = {
    "enable_bucket": "index.buckets",
    "min_bucket_reso": "index.resolution",
    "max_bucket_reso": "index.resolution",
    "bucket_reso_steps": "index.bucket_step",
    "bucket_no_upscale": "index.max_enlargement",
    "resize_interpolation": "cache_latents.interpolation",
    "batch_size": "train.batch_size",
    "validation_split": "train.validation_share",
    "validation_seed": "train.validation_share",
}
_IDLE = {"cache_info", "network_multiplier", "token_warmup_min", "debug_dataset"}
# What is not done here -> its value that asks for nothing.
_NOT_DONE = {
    "color_aug": False,
    "face_crop_aug_range": None,
    "caption_dropout_every_n_epochs": 0,
    "token_warmup_step": 0,
    "custom_attributes": {},
    "metadata_file": None,
}
_INSTEAD = {  # of those, what to do
    "metadata_file": "its captions belong into metadata.jsonl beside the pictures",
    "face_crop_aug_range": "a column focus says where faces are",
    "caption_dropout_every_n_epochs": "caption_dropout_rate is a share of the times",
    "token_warmup_step": "captions are encoded before training",
}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "image_dir": str,
    "num_repeats": int,
    "is_reg": bool,
    "class_tokens": str,
    "caption_extension": str,
    "caption_prefix": str,
    "caption_suffix": str,
    "caption_dropout_rate": (int, float),
    "enable_wildcard": bool,
    "shuffle_caption": bool,
    "keep_tokens": int,
    "keep_tokens_separator": str,
    "caption_tag_dropout_rate": (int, float),
    "caption_separator": str,
    "secondary_separator": str,
    "alpha_mask": bool,
    "flip_aug": bool,
    "random_crop": bool,
    "resolution": (int, list),
    "conditioning_data_dir": str,
}
_OF_A_SUBSET = {"image_dir", "is_reg", "metadata_file", "conditioning_data_dir", "alpha_mask"}


def read(
    text: str, place: str, inside: Callable[[str, str], str], load: Callable[[str], bytes]
) -> tuple[tuple[Set, ...], list[str]]:
    """The sets of a file, and which of its keys have no effect here. `inside`: a folder's path and the key that names
    it -> that path in the data set; `load`: a file there -> its bytes. Raises SetsError."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SetsError(f"{place} is not TOML: {error}") from None
    general, datasets = tree.pop("general", {}), tree.pop("datasets", None)
    if tree or not _is_list_of_tables(datasets) or not isinstance(general, dict):
        raise SetsError(f"{place}: wanted [general] and [[datasets]], as kohya's sd-scripts has them{_found(tree)}")
    sets, ignored = [], set()
    for group, dataset in enumerate(datasets):
        subsets = dataset.get("subsets")
        if not _is_list_of_tables(subsets):
            raise SetsError(f"{place}: datasets.{group}: wanted [[datasets.subsets]], each with an image_dir")
        above = general | {key: value for key, value in dataset.items() if key != "subsets"}
        if misplaced := above.keys() & _OF_A_SUBSET:
            raise SetsError(f"{place}: {', '.join(sorted(misplaced))}: a key of [[datasets.subsets]] alone")
        seen = set()
        for number, subset in enumerate(subsets):
            key = f"datasets.{group}.subsets.{number}"
            given = above | subset
            _check(given, f"{place}: {key}")
            ignored |= given.keys() & _ELSEWHERE.keys()
            folder = inside(given["image_dir"], f"{key}.image_dir")
            if given.get("num_repeats", 1) < 1 or folder in seen:  # kohya leaves both out, with a warning
                continue
            seen.add(folder)
            masks = given.get("conditioning_data_dir")
            masks = masks and inside(masks, f"{key}.conditioning_data_dir")
            sets.append(_set(given, folder, group, masks))
    if not sets:
        raise SetsError(f"{place}: no subset with num_repeats of 1 or more")
    notes = [f"{key} of dataset.toml is not read: {_ELSEWHERE[key]} is for all sets" for key in sorted(ignored)]
    return tuple(sets), notes


def _set(given: dict, folder: str, group: int, masks: str | None) -> Set:
    is_class = given.get("is_reg", False)
    return Set(
        name=given["image_dir"],
        folder=folder,
        below=False,
        repeats=None if is_class else float(given.get("num_repeats", 1)),
        class_images=is_class,
        group=group,
        caption_dropout=float(given.get("caption_dropout_rate", 0)),
        caption=given.get("class_tokens", "").strip(),
        prefix=given.get("caption_prefix", "").strip(),
        suffix=given.get("caption_suffix", "").strip(),
        extension=given.get("caption_extension", ".caption").lower(),
        first_line=not given.get("enable_wildcard", False),
        rules=_rules(given),
        masks=masks,
        flip=given.get("flip_aug"),
        crop={True: "random", False: "center", None: None}[given.get("random_crop")],
        resolutions=_resolutions(given.get("resolution")),
        alpha_mask=given.get("alpha_mask"),
    )


def _resolutions(given: int | list | None) -> tuple[int, ...]:
    """kohya's list of two is the width and height of a square."""
    return () if given is None else (given if isinstance(given, int) else given[0],)


def _rules(given: dict) -> Rules | None:
    shuffle, drop = given.get("shuffle_caption", False), float(given.get("caption_tag_dropout_rate", 0))
    wildcards, binder = given.get("enable_wildcard", False), given.get("secondary_separator", "")
    if not (shuffle or drop or wildcards or binder):
        return None
    keep, separator = given.get("keep_tokens", 0), given.get("caption_separator", ",")
    fence = given.get("keep_tokens_separator", "")
    return Rules(0, 0, shuffle, keep, drop, separator, ", ", wildcards, framed=True, fence=fence, binder=binder)


def _check(given: dict, where: str) -> None:
    for key, value in given.items():
        if key in _NOT_DONE:
            if value != _NOT_DONE[key]:
                instead = f" ({_INSTEAD[key]})" if key in _INSTEAD else ""
                raise SetsError(f"{where}: {key} is not done here; remove it{instead}")
        elif key in _TYPES:
            wanted = _TYPES[key]
            if not isinstance(value, wanted) or isinstance(value, bool) and wanted is not bool:
                raise SetsError(f"{where}: {key}: found {str(value)[:100]!r}, wanted {_word(wanted)}")
        elif key not in _ELSEWHERE and key not in _IDLE:
            do = meant(key, [*_TYPES, *_ELSEWHERE, *_IDLE]) or "remove it"
            raise SetsError(f"{where}: {key[:100]} is no key of kohya's dataset.toml that is known here; {do}")
    if "image_dir" not in given:
        raise SetsError(f"{where}: no image_dir")
    if not given.get("num_repeats", 1) <= 100_000:
        raise SetsError(f"{where}: num_repeats: found {given['num_repeats']}, wanted 100,000 at most")
    for key in ("caption_dropout_rate", "caption_tag_dropout_rate"):
        if not 0 <= given.get(key, 0) <= 1:
            raise SetsError(f"{where}: {key}: found {given[key]}, wanted 0 to 1")
    sides = given.get("resolution", 64)
    sides = sides if isinstance(sides, list) else [sides]
    if (
        not 1 <= len(sides) <= 2
        or len(set(map(str, sides))) > 1
        or type(sides[0]) is not int
        or not 0 < sides[0] <= 16384
    ):
        raise SetsError(
            f"{where}: resolution: found {str(given['resolution'])[:100]}, wanted a side, or twice the same one"
        )
    if not 0 <= given.get("keep_tokens", 0) <= 10_000:
        raise SetsError(f"{where}: keep_tokens: found {str(given['keep_tokens'])[:100]}, wanted 0 to 10,000")
    if not given.get("caption_separator", ","):
        raise SetsError(f"{where}: caption_separator: wanted a text that is not empty")


def _word(wanted: type | tuple[type, ...]) -> str:
    return {str: "a string", int: "a whole number", bool: "true or false"}.get(wanted, "a number")


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _found(tree: dict) -> str:
    return f"; found {', '.join(key[:100] for key in list(tree)[:5])}" if tree else ""

"""The samples and repeats of a data set by kohya's own loader, by OneTrainer's and by `datasets`, beside the index's; and
what kohya's and OneTrainer's have for each picture: its mask, and of kohya's the flip, crop and resolution of its set.

    python tests/golden/compare_sets.py kohya SD_SCRIPTS       # a checkout of kohya-ss/sd-scripts
    python tests/golden/compare_sets.py onetrainer MGDS        # a checkout of Nerogar/mgds, OneTrainer's loader
    python tests/golden/compare_sets.py datasets

with a Python that has what those need (sd-scripts: torch, transformers, diffusers, accelerate, torchvision, toml,
voluptuous, imagesize, opencv-python-headless, einops; mgds: torch, tqdm; the last: datasets) and, of this project's,
numpy, pillow, pyarrow, pydantic, ruamel.yaml and tqdm. Run in the project's folder; ends with exit code 1 where they
differ."""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from tests.data.data_sets import jsonl, picture, rows, write_folder  # noqa: E402

Seen = Counter  # of (path in the data set, caption, whether a class picture): times an epoch
# (path, folder of its set) -> its mask, whether that is its alpha channel, flips, random crops, sides of resolutions
Had = dict[tuple[str, str], tuple]

FILES = {f"cats/{n}.png": picture(n) for n in range(4)}
FILES |= {
    "cats/0.txt": "one, two\nthree",
    "cats/1.caption": "other",
    "cats/2.txt": "  last  \n",
    "cats/below/9.png": picture(9),
}
FILES |= {f"dogs/{n}.jpg": picture(n + 20, form="JPEG") for n in range(3)} | {"dogs/1.txt": "four"}
FILES |= {f"class/{n}.webp": picture(n + 30, form="WEBP") for n in range(5)} | {
    "class/0.txt": "five",
    "dogs/0.png": FILES["cats/0.png"],
}
TOML = """
[general]
caption_extension = ".txt"
caption_prefix = "sks"
[[datasets]]
resolution = 64
batch_size = 1
  [[datasets.subsets]]
  image_dir = "cats"
  num_repeats = 5
  class_tokens = "a cat"
  [[datasets.subsets]]
  image_dir = "class"
  is_reg = true
  caption_prefix = ""
  class_tokens = "an animal"
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = "dogs"
  num_repeats = 2
  caption_suffix = "at night"
  [[datasets.subsets]]
  image_dir = "cats"
  caption_extension = ".caption"
"""
CONCEPTS = [
    {"name": "cats", "path": "cats", "balancing": 3.0},
    {
        "name": "all",
        "path": ".",
        "include_subdirectories": True,
        "balancing": 1.0,
        "text": {"prompt_source": "filename"},
    },
    {"name": "dogs", "path": "dogs", "balancing": 8.0, "balancing_strategy": "SAMPLES"},
]
# The same files with masks and with settings of each set.
MASKS = {f"cat masks/{n}.png": picture(n + 40) for n in range(4)}
# kohya takes either masks or other sets.
KOHYA_MASKS = """
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = "cats"
  conditioning_data_dir = "cat masks"
  flip_aug = true
"""
KOHYA_SETTINGS = """
[[datasets]]
resolution = 96
  [[datasets.subsets]]
  image_dir = "class"
  random_crop = true
  alpha_mask = true
[[datasets]]
resolution = [128, 128]
flip_aug = true
  [[datasets.subsets]]
  image_dir = "dogs"
  flip_aug = false
"""
METADATA = [
    {"file_name": "cats/0.png", "text": "zero"},
    {"file_name": "cats/1.png", "text": "one"},
    {"file_name": "dogs/1.jpg", "text": "two"},
]


def ours(root: Path) -> Seen:
    """By the index. A caption's share of the times is an equal one."""
    from pipeline.data.buckets import buckets
    from pipeline.data.index import index
    from pipeline.data.sets_file import find
    from pipeline.data.sources import open_source
    from pipeline.data.views import sizes_of

    out = root.parent / "out"
    source = open_source(str(root))
    sets, _ = find(str(root), source)
    index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=sets, others=sizes_of(sets, 32, True))
    texts = {row["caption"]: row["text"] for row in rows(out / "captions.parquet")}
    paths = {row["image"]: row["path"] for row in rows(out / "images.parquet")[::-1]}  # of copies the first
    samples = rows(out / "samples.parquet")
    captions = Counter((row["image"], row["set"]) for row in samples)
    seen = Seen()
    for row in samples:
        times = row["repeats"] / captions[row["image"], row["set"]]
        seen[paths[row["image"]], texts[row["caption"]], row["class_images"]] += times
    return seen


def our_settings(root: Path) -> Had:
    """By the sets and the sources' parts, as the index has them."""
    from pipeline.data import masks
    from pipeline.data.sets import holds
    from pipeline.data.sets_file import find
    from pipeline.data.sources import open_source

    source = open_source(str(root))
    sets, _ = find(str(root), source)
    (part,) = (masks.of_sets(part, sets) for part in source.parts())
    return {
        (path, one.folder): (mask, bool(one.alpha_mask), bool(one.flip), one.crop == "random", *one.resolutions)
        for one in sets
        for path, mask in zip(part.paths.to_pylist(), part.masks.to_pylist())
        if holds(one, path)
    }


def named(root: Path, path: str) -> str:
    """A path in the data set, of copies the first."""
    first = {data: name for name, data in sorted(FILES.items(), reverse=True) if isinstance(data, bytes)}
    return first[FILES[os.path.relpath(path, root)]]


def kohya(root: Path, checkout: str) -> Seen:
    import torch

    # PyPI's torchvision is built for CUDA; beside a torch without it, it lacks these.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.insert(0, checkout)
    from library import config_util

    write_folder(root, {"dataset.toml": TOML})
    seen = Seen()
    for dataset in _kohyas(root, config_util, with_masks=False):
        for info in dataset.image_data.values():
            subset = dataset.image_to_subset[info.image_key]
            caption = " ".join(dataset.process_caption(subset, info.caption).split())  # to CLIP all space is one
            seen[named(root, info.absolute_path), caption, info.is_reg] += info.num_repeats
    return seen


def _kohyas(root: Path, config_util, with_masks: bool) -> list:
    """Its data sets by the dataset.toml in `root`. Masks are conditioning images to it."""
    os.chdir(root)
    generator = config_util.BlueprintGenerator(config_util.ConfigSanitizer(True, False, with_masks, True))
    blueprint = generator.generate(config_util.load_user_config("dataset.toml"), argparse.Namespace())
    group = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    return (group[0] if isinstance(group, tuple) else group).datasets


def kohya_settings(root: Path, text: str) -> Had:
    """By a dataset.toml, after `kohya`, which has imported it."""
    from library import config_util

    write_folder(root, MASKS | {"dataset.toml": text})
    had: Had = {}
    for dataset in _kohyas(root, config_util, with_masks=text == KOHYA_MASKS):
        dataset = getattr(dataset, "dreambooth_dataset_delegate", dataset)
        assert dataset.width == dataset.height
        for info in dataset.image_data.values():
            subset = dataset.image_to_subset[info.image_key]
            path, mask = (one and os.path.relpath(one, root) for one in (info.absolute_path, info.cond_img_path))
            had[path, subset.image_dir] = mask, subset.alpha_mask, subset.flip_aug, subset.random_crop, dataset.width
    return had


class Alone:
    """What a module of mgds asks its pipeline for, out of a plain table."""

    def __init__(self, module, table: dict[str, list]):
        self.module = module
        module._get_previous_length = lambda name: len(table[name])
        module._get_previous_item = lambda _, name, index: table[name][index]
        module.start(0)

    def column(self, name: str) -> list:
        return [self.module.get_item(0, index, name)[name] for index in range(self.module.length())]


def _collected(concepts: list[dict]) -> dict[str, list]:
    """The pictures of each concept, by CollectPaths as OneTrainer uses it."""
    from mgds.pipelineModules.CollectPaths import CollectPaths

    kinds, beside = {".png", ".jpg", ".webp"}, ["-masklabel", "-condlabel"]
    names = "concept", "path", "concept.include_subdirectories", "enabled", "image_path", "concept"
    collect = CollectPaths(*names, kinds, None, beside)
    table = {"concept": concepts, "concept.include_subdirectories": [one["include_subdirectories"] for one in concepts]}
    alone = Alone(collect, table)
    return {name: alone.column(name) for name in ("image_path", "concept")}


def onetrainer_masks(root: Path) -> Had:
    """Of one concept, after `onetrainer`, which has imported it: the masks are the files that its ModifyPath names."""
    from mgds.pipelineModules.ModifyPath import ModifyPath

    concept = {"name": "dogs", "path": "dogs", "enabled": True, "include_subdirectories": False}
    write_folder(root, {"dogs/1-masklabel.png": picture(50), "concepts.json": json.dumps([concept])})
    table = _collected([concept])
    masks = Alone(ModifyPath("image_path", "mask_path", "-masklabel", ".png"), table).column("mask_path")
    relative = [tuple(os.path.relpath(path, root) for path in pair) for pair in zip(table["image_path"], masks)]
    return {(path, "dogs"): (mask if os.path.exists(mask) else None, False, False, False) for path, mask in relative}


def onetrainer(root: Path, checkout: str) -> Seen:
    sys.path.insert(0, f"{checkout}/src")
    from mgds.pipelineModules.GetFilename import GetFilename
    from mgds.pipelineModules.LoadMultipleTexts import LoadMultipleTexts
    from mgds.pipelineModules.ModifyPath import ModifyPath
    from mgds.pipelineModules.VariationSorting import VariationSorting

    write_folder(root, {"concepts.json": json.dumps(CONCEPTS)})
    concepts = [
        {"enabled": True, "include_subdirectories": False, "balancing_strategy": "REPEATS", "text": {}} | concept
        for concept in CONCEPTS
    ]
    os.chdir(root)
    table = _collected(concepts)
    for name in ("balancing", "balancing_strategy", "name"):
        table[f"concept.{name}"] = [concept[name] for concept in table["concept"]]
    table["text_path"] = Alone(ModifyPath("image_path", "text_path", "", ".txt"), table).column("text_path")
    table["texts"] = Alone(LoadMultipleTexts("text_path", "texts"), table).column("texts")
    table["file_name"] = Alone(GetFilename("image_path", "file_name", False), table).column("file_name")
    names = ["image_path", "concept", "texts", "file_name"]
    sorting = VariationSorting(names, "concept.balancing", "concept.balancing_strategy", ["concept.name"])
    Alone(sorting, table)
    seen, epochs = Seen(), 6
    for epoch in range(epochs):
        sorting.start(epoch)
        for index in range(sorting.length()):
            path, concept, texts, file_name = (sorting.get_item(epoch, index, name)[name] for name in names)
            texts = [file_name] if concept["text"].get("prompt_source") == "filename" else texts
            for text in texts:
                seen[named(root, path), text, False] += 1 / len(texts) / epochs
    return seen


def imagefolder(root: Path, _: str | None) -> Seen:
    from datasets import Image, load_dataset

    write_folder(root, {"metadata.jsonl": jsonl(*METADATA)})
    for name in [name for name in FILES if not any(row["file_name"] == name for row in METADATA)]:
        (root / name).unlink()
    cache = root.parent / "cache"
    table = load_dataset("imagefolder", data_dir=str(root), split="train", cache_dir=str(cache)).cast_column(
        "image", Image(decode=False)
    )
    return Seen((named(root, row["image"]["path"]), row["text"], False) for row in table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    loaders = {"kohya": kohya, "onetrainer": onetrainer, "datasets": imagefolder}
    parser.add_argument("loader", choices=loaders)
    parser.add_argument("checkout", nargs="?")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PIPELINE_STORE"] = f"{folder}/store"
        root = write_folder(Path(folder) / "data", FILES)
        checkout = given.checkout and str(Path(given.checkout).resolve())
        theirs = loaders[given.loader](root, checkout)
        mine = ours(root)
        further = {
            "kohya": [partial(kohya_settings, text=text) for text in (KOHYA_MASKS, KOHYA_SETTINGS)],
            "onetrainer": [onetrainer_masks],
        }
        had = [(theirs_of(root), our_settings(root)) for theirs_of in further.get(given.loader, [])]
    for their_own, our_own in had:
        for key in sorted(their_own | our_own):
            both = their_own.get(key), our_own.get(key)
            print(f"{'  ' if both[0] == both[1] else '->'} {key[0]:20} {key[1]:8} theirs {both[0]}, ours {both[1]}")
    for key in sorted(theirs | mine):
        mark = "  " if abs(theirs[key] - mine[key]) < 1e-9 else "->"
        print(
            f"{mark} {key[0]:20} {key[1]!r:28} {'class' if key[2] else '':6} theirs {theirs[key]:g}, ours {mine[key]:g}"
        )
    differ = any(abs(theirs[key] - mine[key]) > 1e-9 for key in theirs | mine)
    return int(differ or any(their_own != our_own for their_own, our_own in had))


if __name__ == "__main__":
    sys.exit(main())

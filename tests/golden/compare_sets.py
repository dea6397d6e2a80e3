"""The samples and repeats of a data set by kohya's own loader, by OneTrainer's and by `datasets`, beside the index's.

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from tests.data.data_sets import jsonl, picture, rows, write_folder  # noqa: E402

Seen = Counter  # of (path in the data set, caption, whether a class picture): times an epoch

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

    out = root.parent / "out"
    source = open_source(str(root))
    sets, _ = find(str(root), source)
    index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=sets)
    texts = {row["caption"]: row["text"] for row in rows(out / "captions.parquet")}
    paths = {row["image"]: row["path"] for row in rows(out / "images.parquet")[::-1]}  # of copies the first
    samples = rows(out / "samples.parquet")
    captions = Counter((row["image"], row["set"]) for row in samples)
    seen = Seen()
    for row in samples:
        times = row["repeats"] / captions[row["image"], row["set"]]
        seen[paths[row["image"]], texts[row["caption"]], row["class_images"]] += times
    return seen


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
    os.chdir(root)
    generator = config_util.BlueprintGenerator(config_util.ConfigSanitizer(True, False, False, True))
    blueprint = generator.generate(config_util.load_user_config("dataset.toml"), argparse.Namespace())
    group = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    group = group[0] if isinstance(group, tuple) else group
    seen = Seen()
    for dataset in group.datasets:
        for info in dataset.image_data.values():
            subset = dataset.image_to_subset[info.image_key]
            caption = " ".join(dataset.process_caption(subset, info.caption).split())  # to CLIP all space is one
            seen[named(root, info.absolute_path), caption, info.is_reg] += info.num_repeats
    return seen


def onetrainer(root: Path, checkout: str) -> Seen:
    sys.path.insert(0, f"{checkout}/src")
    from mgds.pipelineModules.CollectPaths import CollectPaths
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

    class Alone:
        """What a module of mgds asks its pipeline for, out of a plain table."""

        def __init__(self, module, table: dict[str, list]):
            self.module = module
            module._get_previous_length = lambda name: len(table[name])
            module._get_previous_item = lambda _, name, index: table[name][index]
            module.start(0)

        def column(self, name: str) -> list:
            return [self.module.get_item(0, index, name)[name] for index in range(self.module.length())]

    kinds, beside = {".png", ".jpg", ".webp"}, ["-masklabel", "-condlabel"]
    names = "concept", "path", "concept.include_subdirectories", "enabled", "image_path", "concept"
    collect = CollectPaths(*names, kinds, None, beside)
    table = {"concept": concepts, "concept.include_subdirectories": [one["include_subdirectories"] for one in concepts]}
    alone = Alone(collect, table)
    table = {name: alone.column(name) for name in ("image_path", "concept")}
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
    for key in sorted(theirs | mine):
        mark = "  " if abs(theirs[key] - mine[key]) < 1e-9 else "->"
        print(
            f"{mark} {key[0]:20} {key[1]!r:28} {'class' if key[2] else '':6} theirs {theirs[key]:g}, ours {mine[key]:g}"
        )
    return int(any(abs(theirs[key] - mine[key]) > 1e-9 for key in theirs | mine))


if __name__ == "__main__":
    sys.exit(main())

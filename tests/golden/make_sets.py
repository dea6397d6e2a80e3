"""Make sets.json: the samples that kohya's own loader, OneTrainer's and `datasets` make of the data sets of sets_rule.py: of
each its path, set, times an epoch, captions with the share of each, and what the set says of flip, crop, resolution and masks.

    python -m tests.golden.make_sets kohya SD_SCRIPTS            # a clone of kohya-ss/sd-scripts
    python -m tests.golden.make_sets onetrainer ONETRAINER MGDS  # of Nerogar/OneTrainer, and of Nerogar/mgds, its loader
    python -m tests.golden.make_sets datasets

in the project's folder, each in an environment of its own (Python 3.11) with numpy and pillow and

    kohya: torch==2.13.0 torchvision==0.28.0 transformers==4.54.1 diffusers==0.32.1 accelerate==1.15.0 toml==0.10.2
        voluptuous==0.16.0 imagesize==2.0.1 opencv-python-headless==5.0.0.93 einops==0.8.2 tqdm
    onetrainer: torch==2.13.0 torchvision==0.28.0 transformers==5.24.0 diffusers==0.39.0 accelerate==1.15.0 parse==1.22.4
        gguf==0.19.0 av==18.1.0 opencv-python-headless==5.0.0.93 tensorboard==2.21.0 tqdm
    datasets: datasets==5.2.0

Each writes its own part of the file, and OneTrainer's a concept with the settings that it comes with as well. Code is run as it
stands at the revisions below, which are read out of the clones."""

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.golden.sets_rule import CASES, first_copies

GOLDEN = Path(__file__).with_name("sets.json")
REVISIONS = {
    "sd-scripts": "48d368fa557731ad0488c07304dfeba8c07910eb",
    "OneTrainer": "23df3832e8f213d64c337e39f9365ba46e99fed0",
    "mgds": "3a6994ad18a490acc4f3876658167525b7d88da7",  # OneTrainer's requirements-global.txt names it
}
DRAWS = 4000  # of a caption
EPOCHS = 600  # divisible by the pictures of a concept: fractions of a repeat come out


def unpack(clone: str, revision: str, folder: str, into: Path) -> None:
    """A folder of a clone at a revision, to be imported from."""
    into.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(["git", "-C", clone, "archive", revision, folder], check=True, capture_output=True).stdout
    (into / "archive.tar").write_bytes(packed)
    with tarfile.open(into / "archive.tar") as tar:
        tar.extractall(into, filter="data")
    sys.path.insert(0, str(into / ("src" if folder == "src" else "")))


def torch_with_torchvision():
    """PyPI's torchvision is built for CUDA; beside a torch without it, it lacks these. Returns what must be kept."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # it is there
            pass
    return library


def shares(texts: Counter) -> dict[str, float]:
    return {text: round(count / texts.total(), 4) for text, count in sorted(texts.items())}


def kohya(clones: list[str], scratch: Path):
    unpack(clones[0], REVISIONS["sd-scripts"], "library", scratch / "sd-scripts")
    library = torch_with_torchvision()
    from library import config_util, train_util

    parser = argparse.ArgumentParser()
    train_util.add_dataset_arguments(parser, True, True, True)  # for their defaults

    def read(root: Path) -> list[dict]:
        if by_file := (root / "dataset.toml").exists():
            config = config_util.load_user_config("dataset.toml")
        else:  # as train_network.py has it with --train_data_dir
            subsets = config_util.generate_dreambooth_subsets_config_by_subdirs(".", None)
            config = {"datasets": [{"subsets": subsets}]}
        with_masks = "conditioning_data_dir" in str(config)
        sanitizer = config_util.ConfigSanitizer(True, False, with_masks, True)
        given = parser.parse_args(["--resolution", "64", *([] if by_file else ["--caption_extension", ".txt"])])
        train_util.prepare_dataset_args(given, True)
        blueprint = config_util.BlueprintGenerator(sanitizer).generate(config, given)
        group, _ = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
        found = []
        for dataset in group.datasets:
            dataset = getattr(
                dataset, "dreambooth_dataset_delegate", dataset
            )  # with masks, which are ControlNet's to it
            assert dataset.width == dataset.height
            for info in dataset.image_data.values():
                subset = dataset.image_to_subset[info.image_key]
                dropout, subset.caption_dropout_rate = subset.caption_dropout_rate, 0
                random.seed(0)
                texts = (dataset.process_caption(subset, info.caption) for _ in range(DRAWS))
                captions = Counter(" ".join(text.split()) for text in texts)  # to CLIP all space is one
                subset.caption_dropout_rate = dropout
                found.append(
                    {
                        "path": os.path.relpath(info.absolute_path, root),
                        "set": os.path.relpath(subset.image_dir),
                        "times": info.num_repeats,
                        "captions": shares(captions),
                        "class_images": info.is_reg,
                        **({"caption_dropout": dropout} if by_file else {}),  # of folders the command line has it
                        "flip": subset.flip_aug,
                        "crop": "random" if subset.random_crop else "center",
                        "sides": [dataset.width],
                        "alpha_mask": bool(subset.alpha_mask),
                        "mask": info.cond_img_path and os.path.relpath(info.cond_img_path, root),
                    }
                )
        return found

    read.keep = library
    return read


def onetrainer(clones: list[str], scratch: Path):
    unpack(clones[0], REVISIONS["OneTrainer"], "modules", scratch / "OneTrainer")
    unpack(clones[1], REVISIONS["mgds"], "src", scratch / "mgds")
    library = torch_with_torchvision()
    from mgds.OutputPipelineModule import OutputPipelineModule
    from modules.dataLoader.mixin.DataLoaderMgdsMixin import DataLoaderMgdsMixin
    from modules.dataLoader.mixin.DataLoaderText2ImageMixin import DataLoaderText2ImageMixin
    from modules.util.config.ConceptConfig import ConceptConfig
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.DataType import DataType
    from modules.util.TrainProgress import TrainProgress

    names = ["image_path", "mask_path", "prompt", "image", "crop_offset", "crop_resolution"]

    class Loader(DataLoaderMgdsMixin, DataLoaderText2ImageMixin):
        """OneTrainer's, up to the pictures and captions that a model's own part would encode."""

        def _preparation_modules(self, config, model):
            return []

        def _cache_modules(self, config, model, model_setup):
            return self._cache_modules_from_names(
                model, model_setup, [], [], [], [*names, "concept"], config, False, lambda: None
            )

        def _output_modules(self, config, model, model_setup):
            return [OutputPipelineModule([*names, "concept"])]

        def _debug_modules(self, config, model):
            return []

    def read(root: Path) -> list[dict]:
        config = TrainConfig.default_values()
        config.concept_file_name, config.concepts = "concepts.json", None
        config.latent_caching, config.masked_training, config.resolution = False, True, "64"
        config.train_device, config.dataloader_threads, config.batch_size = "cpu", 1, 1
        model = SimpleNamespace(train_dtype=DataType.FLOAT_32)
        # Quantized by 8: small pictures, and with room to crop.
        loaded = Loader()._create_dataset(config, model, None, TrainProgress(), False, 8)
        seen: dict[tuple, list[dict]] = defaultdict(list)
        for _ in range(EPOCHS):
            loaded.start_next_epoch()
            for item in loaded:
                seen[item["concept"]["name"], item["image_path"]].append(item)
        return [_seen(root, name, path, items) for (name, path), items in seen.items()]

    def _seen(root: Path, name: str, path: str, items: list[dict]) -> dict:
        half = items[0]["image"].shape[-1] // 2
        flipped = {bool(item["image"][..., :half].mean() < item["image"][..., -half:].mean()) for item in items}
        offsets = {(*item["crop_resolution"], *item["crop_offset"]) for item in items}
        by_side = {side: [one for one in offsets if one[:2] == side] for side in {one[:2] for one in offsets}}
        mask = items[0]["mask_path"]
        return {
            "path": os.path.relpath(path, root),
            "set": name,
            "times": len(items) / EPOCHS,
            "captions": shares(Counter(item["prompt"] for item in items)),
            "loss_weight": items[0]["concept"]["loss_weight"],
            "flip": flipped == {False, True},
            "crop": "random" if any(len(several) > 1 for several in by_side.values()) else "center",
            "sides": sorted({int(round(np.sqrt(height * width) / 32) * 32) for height, width in by_side}),
            "mask": os.path.relpath(mask, root) if os.path.exists(mask) else None,
        }

    read.keep = library
    read.further = {"onetrainer_writes": ConceptConfig.default_values().to_dict() | {"seed": 0, "path": "cats"}}
    return read


def imagefolder(clones: list[str], scratch: Path):
    from datasets import Image, __version__, load_dataset

    REVISIONS["datasets"] = __version__

    def read(root: Path) -> list[dict]:
        with tempfile.TemporaryDirectory() as cache:
            table = load_dataset("imagefolder", data_dir=str(root), split="train", cache_dir=cache)
            found = []
            for row in table.cast_column("image", Image(decode=False)):
                texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
                found.append(
                    {
                        "path": os.path.relpath(row["image"]["path"], root),
                        "times": (row.get("repeats") or 1) * (row.get("weight") or 1),  # the columns as they come
                        "captions": shares(Counter(texts)),
                    }
                )
        return found

    return read


READERS = {"kohya": kohya, "onetrainer": onetrainer, "datasets": imagefolder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=READERS)
    parser.add_argument("clones", nargs="*")
    given = parser.parse_args()
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"revisions": {}}
    with tempfile.TemporaryDirectory() as folder:
        clones = [str(Path(clone).resolve()) for clone in given.clones]
        read, found = READERS[given.peer](clones, Path(folder).resolve()), {}
        for number, (case, files) in enumerate(CASES[given.peer].items()):
            root = Path(folder).resolve() / f"data{number}"
            for name, data in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
            os.chdir(root)
            firsts = first_copies(root)
            rows = [row | {"path": firsts[row["path"]]} for row in read(root)]
            found[case] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
    golden |= {given.peer: found, **getattr(read, "further", {})}
    used = {"kohya": ["sd-scripts"], "onetrainer": ["OneTrainer", "mgds"], "datasets": ["datasets"]}[given.peer]
    golden["revisions"] |= {name: REVISIONS[name] for name in used}
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

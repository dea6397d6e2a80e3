"""What make_sets.py and tests/data/test_sets_golden.py share: data sets that kohya's loader, OneTrainer's and `datasets` read."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

Files = dict[str, bytes | str]


def shaded(seed: int, width: int = 96, height: int = 40, form: str = "PNG") -> bytes:
    """A picture that is darker at the right, by which one sees whether it was mirrored."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] //= 4
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def first_copies(root: Path) -> dict[str, str]:
    """Of each file below `root` the first one with its bytes: of copies the index has one."""
    by_bytes: dict[bytes, str] = {}
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return {name: by_bytes.setdefault((root / name).read_bytes(), name) for name in names}


def concepts(*several: dict) -> str:
    """With settings that OneTrainer writes and that mean nothing here."""
    return json.dumps([{"__version": 2, "seed": number} | one for number, one in enumerate(several)])


P = [shaded(number) for number in range(24)]
CATS: Files = {f"cats/{number}.png": P[number] for number in range(4)}
CATS |= {
    "cats/0.txt": "one, two\nthree",
    "cats/1.caption": "other",
    "cats/2.txt": "  last  \n",
    "cats/below/9.png": P[9],
}
DOGS: Files = {f"dogs/{number}.png": P[10 + number] for number in range(3)} | {"dogs/1.txt": "four"}
DOGS |= {"dogs/0.png": P[0]}  # a copy
CLASS: Files = {f"class/{number}.webp": shaded(30 + number, form="WEBP") for number in range(5)} | {
    "class/0.txt": "five"
}
TAGS: Files = {"cats/0.png": P[0], "cats/0.txt": "fox, snow, red, dusk"}
LINES: Files = {"cats/0.png": P[0], "cats/0.txt": "a {red|green|blue} fox\n\nat {{dusk}}"}


def toml(*lines: str, subset: str = "", rest: str = "") -> str:
    """A dataset.toml of one subset, `cats`, with captions of .txt."""
    top = ["[general]", 'caption_extension = ".txt"', "[[datasets]]", "resolution = 64", *lines]
    return "\n".join([*top, "[[datasets.subsets]]", 'image_dir = "cats"', *filter(None, (subset, rest))]) + "\n"


# Folders as --train_data_dir, or a dataset.toml -> kohya's loader.
KOHYA: dict[str, Files] = {
    "toml": {
        **CATS,
        **DOGS,
        **CLASS,
        "dataset.toml": """
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
  caption_dropout_rate = 0.25
  [[datasets.subsets]]
  image_dir = "class"
  is_reg = true
  caption_prefix = ""
  class_tokens = "an animal"
[[datasets]]
resolution = [96, 96]
flip_aug = true
  [[datasets.subsets]]
  image_dir = "dogs"
  num_repeats = 2
  caption_suffix = "at night"
  random_crop = true
  alpha_mask = true
  flip_aug = false
  [[datasets.subsets]]
  image_dir = "cats"
  caption_extension = ".caption"
  [[datasets.subsets]]
  image_dir = "class"
  num_repeats = 0
""",
    },
    "settings left out": {**DOGS, "dataset.toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "dogs"\n'},
    "masks in a folder": {
        **CATS,
        **{f"cat masks/{number}.png": shaded(40 + number) for number in range(4)},
        "dataset.toml": toml(subset='conditioning_data_dir = "cat masks"', rest="flip_aug = true"),
    },
    "shuffled tags": {**TAGS, "dataset.toml": toml("shuffle_caption = true", "keep_tokens = 1")},
    "dropped tags": {
        **TAGS,
        "cats/0.txt": "fox; snow; red",
        "dataset.toml": toml('caption_separator = ";"', subset="caption_tag_dropout_rate = 0.3"),
    },
    "tags behind a prefix": {
        **TAGS,
        "dataset.toml": toml('caption_prefix = "sks,"', "shuffle_caption = true", "keep_tokens = 2"),
    },
    "tags between separators": {
        **TAGS,
        "cats/0.txt": "fox, snow ||| red, dusk;;;dawn ||| high quality, ||| sharp",
        "dataset.toml": toml(
            'keep_tokens_separator = "|||"', 'secondary_separator = ";;;"', subset="shuffle_caption = true"
        ),
    },
    "tags behind a separator of the prefix": {
        **TAGS,
        "dataset.toml": toml(
            'keep_tokens_separator = "|||"', "caption_tag_dropout_rate = 0.3", subset='caption_prefix = "sks |||"'
        ),
    },
    "separators where nothing is drawn": {
        **TAGS,
        "cats/0.txt": "fox ||| snow;;;red",
        "dataset.toml": toml('keep_tokens_separator = "|||"', 'secondary_separator = ";;;"'),
    },
    "wildcards": {**LINES, "dataset.toml": toml("enable_wildcard = true")},
    "class pictures with repeats": {
        **CATS,
        **CLASS,
        "dataset.toml": toml(subset="num_repeats = 5")
        + '[[datasets.subsets]]\nimage_dir = "class"\nis_reg = true\nnum_repeats = 2\n',
    },
    "folders": {
        "10_sks cat/0.png": P[0],
        "10_sks cat/1.png": P[1],
        "10_sks cat/0.txt": "x",
        "2_dog/a.png": P[2],
        "3_/a.png": P[3],
        "120_two_words/a.png": P[4],
        "0_old/a.png": P[5],
    },
    # From here on theirs differs.
    "folders, otherwise": {
        "2_dog/a.png": P[2],
        "2_dog/below/a.png": P[3],
        "2_dog/lines.png": P[4],
        "2_dog/lines.txt": "one\ntwo",
        "2023_trip/a.png": P[5],
        "05_fifth/a.png": P[6],
        "7/a.png": P[7],
        "others/a.png": P[8],
        "a.png": P[9],
    },
    "uneven class pictures": {
        **{name: data for name, data in CATS.items() if name in ("cats/0.png", "cats/1.png", "cats/2.png")},
        **CLASS,
        "dataset.toml": toml(subset="num_repeats = 2") + '[[datasets.subsets]]\nimage_dir = "class"\nis_reg = true\n',
    },
    "too many class pictures": {
        "cats/0.png": P[0],
        **CLASS,
        "dataset.toml": toml(subset="num_repeats = 2") + '[[datasets.subsets]]\nimage_dir = "class"\nis_reg = true\n',
    },
    "two sets of class pictures": {
        "cats/0.png": P[0],
        "class/0.png": P[1],
        "more/0.png": P[2],
        "dataset.toml": toml(subset="num_repeats = 12")
        + '[[datasets.subsets]]\nimage_dir = "class"\nis_reg = true\nnum_repeats = 2\n'
        + '[[datasets.subsets]]\nimage_dir = "more"\nis_reg = true\nnum_repeats = 6\n',
    },
    "lines behind a prefix": {
        **LINES,
        "cats/0.txt": "one\ntwo",
        "dataset.toml": toml("enable_wildcard = true", 'caption_prefix = "sks"', 'caption_suffix = "at night"'),
    },
    "wildcards in others": {**LINES, "cats/0.txt": "{a|{b|c}}", "dataset.toml": toml("enable_wildcard = true")},
    "empty tags": {
        **TAGS,
        "cats/0.txt": "fox,, snow",
        "dataset.toml": toml("shuffle_caption = true", "keep_tokens = 2"),
    },
}

SEVERAL = {**CATS, **DOGS, "cats/0-masklabel.png": shaded(50), "cats/1-condlabel.png": shaded(51)}
# concepts.json -> OneTrainer's loader.
ONETRAINER: dict[str, Files] = {
    "concepts": {
        **SEVERAL,
        "concepts.json": concepts(
            {"name": "cats", "path": "cats", "balancing": 3.0, "image": {"enable_crop_jitter": False}},
            {
                "name": "all",
                "path": ".",
                "include_subdirectories": True,
                "loss_weight": 0.5,
                "text": {"prompt_source": "filename"},
                "image": {"enable_crop_jitter": True, "enable_random_flip": True},
            },
            {"name": "off", "path": "dogs", "enabled": False},
            {"name": "validation", "path": "dogs", "type": "VALIDATION"},
        ),
    },
    "balancing": {
        **SEVERAL,
        "concepts.json": concepts(
            {"name": "half", "path": "cats", "balancing": 0.5, "image": {"enable_crop_jitter": False}},
            {"name": "more", "path": "cats", "balancing": 1.25, "image": {"enable_crop_jitter": False}},
            {
                "name": "five of three",
                "path": "dogs",
                "balancing": 5,
                "balancing_strategy": "SAMPLES",
                "image": {"enable_crop_jitter": False},
            },
        ),
    },
    "captions of the concept": {
        **SEVERAL,
        "prompts/dogs.txt": "a dog\n\n sks dog \n",
        "concepts.json": concepts(
            {
                "name": "dogs",
                "path": "dogs",
                "text": {"prompt_source": "concept", "prompt_path": "prompts/dogs.txt"},
                "image": {
                    "enable_crop_jitter": True,
                    "enable_resolution_override": True,
                    "resolution_override": "96, 128",
                },
            },
            {
                "name": "without override",
                "path": "cats",
                "image": {"enable_crop_jitter": False, "resolution_override": "96"},
            },
        ),
    },
    "shuffled tags": {
        **TAGS,
        "concepts.json": concepts(
            {
                "name": "cats",
                "path": "cats",
                "image": {"enable_crop_jitter": False},
                "text": {"enable_tag_shuffling": True, "tag_delimiter": ",", "keep_tags_count": 2},
            }
        ),
    },
    "dropped tags": {
        **TAGS,
        "cats/0.txt": "fox;; snow; red;",
        "concepts.json": concepts(
            {
                "name": "cats",
                "path": "cats",
                "image": {"enable_crop_jitter": False},
                "text": {
                    "tag_delimiter": ";",
                    "tag_dropout_enable": True,
                    "tag_dropout_mode": "RANDOM",
                    "tag_dropout_probability": 0.3,
                },
            }
        ),
    },
    "as older versions wrote it": {
        **DOGS,
        "concepts.json": json.dumps(
            [
                {"name": "dogs", "path": "dogs", "repeats": 2.0, "seed": 1, "image": {"enable_crop_jitter": False}},
                {"name": "validation", "path": "dogs", "repeats": 3.0, "seed": 2, "validation_concept": True},
            ]
        ),
    },
    # From here on theirs differs.
    "settings left out": {**TAGS, "concepts.json": concepts({"name": "cats", "path": "cats"})},
    "rounded down": {
        **DOGS,
        "concepts.json": concepts(
            {"name": "dogs", "path": "dogs", "balancing": 1.5, "image": {"enable_crop_jitter": False}}
        ),
    },
}

# A folder with tables -> `datasets`' imagefolder.
DATASETS: dict[str, Files] = {
    "jsonl": {
        "cats/0.png": P[0],
        "cats/1.png": P[1],
        "dogs/1.jpg": shaded(21, form="JPEG"),
        "metadata.jsonl": jsonl(
            {"file_name": "cats/0.png", "text": "zero", "repeats": 3, "weight": 0.5},
            {"file_name": "cats/1.png", "text": "one", "repeats": 1, "weight": 0.25},
            {"file_name": "dogs/1.jpg", "text": "two", "repeats": 2, "weight": 1.0},
        ),
    },
    "several captions": {
        "0.png": P[0],
        "1.png": P[1],
        "metadata.jsonl": jsonl(
            {"file_name": "0.png", "text": ["zero", "null"]}, {"file_name": "1.png", "text": ["one"]}
        ),
    },
    "csv": {
        "0.png": P[0],
        "below/1.png": P[1],
        "metadata.csv": 'file_name,text,repeats\n0.png,"zero, one",3\nbelow/1.png,two,1\n',
    },
    "tables below": {
        "cats/0.png": P[0],
        "cats/metadata.jsonl": jsonl({"file_name": "0.png", "text": "zero", "weight": 2.0}),
        "dogs/1.png": P[1],
        "dogs/small/2.png": P[2],
        "dogs/metadata.jsonl": jsonl(
            {"file_name": "1.png", "text": "one", "weight": 0.5},
            {"file_name": "small/2.png", "text": "two", "weight": 1.0},
        ),
    },
    # From here on theirs differs.
    "without a row": {
        "0.png": P[0],
        "1.png": P[1],
        "metadata.jsonl": jsonl({"file_name": "0.png", "text": "zero"}),
    },
}
CASES = {"kohya": KOHYA, "onetrainer": ONETRAINER, "datasets": DATASETS}

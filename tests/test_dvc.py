"""What DVC re-runs after each kind of change, walked through DVC itself in a copy of the project.

index, convert, both caches and merge are the real stages, but for the encoders' networks, which would be compiled in each
run. train and sample are stood in for by scripts that take seconds less: what counts here is when DVC runs them, and
dvc.yaml is the project's own."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.models.config import TINY
from pipeline.params import Prompt, load
from pipeline.weights import ckpt, safetensors
from pipeline.weights.adapters.file import write
from pipeline.weights.names import part_of, to_mindspore
from tests import quick_python
from tests.project import copy_project
from tests.weights import provenance_samples
from tests.weights.synthetic import write_checkpoint

ALL = ["index", "convert", "cache_latents", "cache_text", "train", "merge", "sample"]

TRAIN = """
import hashlib, json, shutil
from pathlib import Path
import numpy as np
import yaml
from pipeline.weights.adapters.file import write
from pipeline.weights.chosen import trained_parts

stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["train"]
params = yaml.safe_load(Path("params.yaml").read_text())
digest = hashlib.sha256(json.dumps([params["train"], params["diffusion"]]).encode())
for dep in stage["deps"]:
    for file in sorted(Path(dep).rglob("*")) if Path(dep).is_dir() else [Path(dep)]:
        if file.suffix in (".parquet", ".ckpt", ".json"):
            digest.update(file.read_bytes())
for out in [o for kind in ("outs", "metrics", "plots") for o in stage.get(kind, [])]:
    out = Path(out if isinstance(out, str) else next(iter(out)))
    folder = out if not out.suffix else out.parent
    folder.mkdir(parents=True, exist_ok=True)
    (out if out.suffix else out / "stand_in.json").write_text(json.dumps({"digest": int(digest.hexdigest()[:6], 16)}))
parts = [*trained_parts(params["train"]["text_encoders"]), "unet"]
found, weights = digest.digest(), bytearray()
for part in parts:
    weights += Path(f"outs/convert/{part}.ckpt").read_bytes()
    weights[-2:] = bytes([found[0], found[1] & 0x3F])  # its last tensor's last value, below 2
if params["train"]["adapter"] == "none":
    Path("outs/train/weights/unet.ckpt").write_bytes(weights)
    weights[-2:] = bytes([found[2], found[3] & 0x3F])
    Path("outs/train/weights/step-00000300.ckpt").write_bytes(weights)
else:
    layer, rank = "lora_unet_middle_block_1_proj_in", params["train"]["rank"]
    values = np.full((128, rank), found[0] / 256, np.float32)
    parts = {f"{layer}.lora_up.weight": values, f"{layer}.lora_down.weight": np.ones_like(values.T)}
    write(Path("outs/train/weights/adapter.safetensors"), parts, {layer: rank}, {})
facts = json.loads(Path("facts.json").read_text())
Path("outs/train/weights/run.json").write_text(json.dumps(facts | {"name": digest.hexdigest()}))
"""


ENCODE = '''
"""In place of pipeline/models/encode.py: outputs that the weights count in."""

import zlib

import numpy as np


def _factor(*files):
    return np.float32(sum(zlib.crc32(file.read_bytes()) for file in files) % 1000)


def vae_encoder(config, ckpt, device, precision):
    factor = _factor(ckpt)

    def encode(pixels):
        means = pixels.reshape(*pixels.shape[:2], pixels.shape[2] // 8, 8, -1, 8).mean((3, 5))
        return factor * np.concatenate([means, means, means[:, :2]], axis=1)

    return encode


def text_encoder(config, clip_l, clip_g, device, precision):
    factor = _factor(clip_l, clip_g)

    def encode(ids_l, ids_g):
        hidden = np.repeat((ids_l + ids_g)[..., None], config.unet.context_dim, axis=2)
        return factor * hidden.astype(np.float32) / 1e6, hidden[:, 0, : config.clip_g.projection_dim].astype(np.float32)

    return encode
'''


@pytest.fixture(autouse=True, scope="module")
def _quick(tmp_path_factory):
    with quick_python.folder(tmp_path_factory.mktemp("python")) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A committed copy of the project with six pictures and random tiny weights, after its first `dvc repro`."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    (root / "data/images").mkdir()
    lines = []
    for number in range(6):
        picture(root, number)
        lines.append(f'{{"file_name": "{number}.png", "text": "picture {number}"}}\n')
    (root / "data/images/metadata.jsonl").write_text("".join(lines))
    (root / "data/base").mkdir()
    write_checkpoint(root / "data/base/tiny_sdxl.safetensors", TINY, seed=0, dtype="float16")
    write_checkpoint(root / "data/base/other.safetensors", TINY, seed=1, dtype="float16")
    (root / "pipeline/models/encode.py").write_text(ENCODE)
    (root / "stages/train.py").write_text(TRAIN)
    (root / "facts.json").write_text(json.dumps(provenance_samples.run()))
    (root / "stages/sample.py").write_text(
        "from pathlib import Path\n"
        "Path('outs/sample').mkdir(parents=True)\n"
        "Path('outs/sample/grid.png').write_bytes(b'')\n"
        "Path('outs/sample/metrics.json').write_text('{}')\n"
    )
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message=start")
    assert ran(root, "repro") == ALL
    return root


def picture(root: Path, number: int) -> None:
    save(root / f"data/images/{number}.png", number, 64, 64)


def save(path: Path, seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True)


def ran(root: Path, *words: str) -> list[str]:
    """Run dvc and return the stages that it ran, in the graph's order."""
    return stages_of(dvc(root, *words))


def stages_of(output: str) -> list[str]:
    found = set(re.findall(r"Running stage '([^']+)'", output))
    return [stage for stage in ALL if stage in found]


def dvc(root: Path, *words: str) -> str:
    """Run dvc and return what it printed."""
    env = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "PIPELINE_STORE")}
    done = subprocess.run(["python", "-m", "dvc", *words], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def changed(root: Path, *settings: str) -> str:
    """As `dvc exp run -S ... -S ...`, but that no experiment is kept, which takes longer than the stages."""
    from dvc.utils.hydra import apply_overrides  # slow to import

    apply_overrides(root / "params.yaml", list(settings))
    return dvc(root, "repro")


def ran_changed(root: Path, *settings: str) -> list[str]:
    return stages_of(changed(root, *settings))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_unchanged_runs_nothing(project):
    assert ran(project, "repro") == []


def test_an_edited_caption(project):
    edit(project / "data/images/metadata.jsonl", "picture 3", "another picture")
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_text", "train", "merge", "sample"]
    assert "7 captions in 1 shards: 1 encoded" in output  # six and the empty one


def test_a_changed_weight(project):
    """How often a picture is seen is decided when training, so neither cache runs."""
    edit(project / "data/images/metadata.jsonl", '"text": "another picture"', '"text": "another picture", "repeats": 3')
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "train", "merge", "sample"]
    assert "6 samples, 8 an epoch" in output


def test_an_added_picture_is_encoded_alone(project):
    picture(project, 6)
    with open(project / "data/images/metadata.jsonl", "a") as metadata:
        metadata.write('{"file_name": "6.png", "text": "picture 6"}\n')
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    assert "7 latents in 1 shards: 1 encoded" in output and "8 captions in 1 shards: 1 encoded" in output


def test_weights_of_words(project):
    """Encoded anew is what they are in, and no other caption."""
    edit(project / "data/images/metadata.jsonl", '"picture 2"', '"picture (2:1.3)"')
    assert "8 captions in 1 shards: 1 encoded" in dvc(project, "repro")
    output = changed(project, "cache_text.emphasis=a1111")
    assert stages_of(output) == ["index", "cache_text", "train", "merge", "sample"]
    assert "8 captions in 1 shards: 1 encoded" in output
    edit(project / "data/images/metadata.jsonl", '"picture (2:1.3)"', '"picture 2"')
    output = changed(project, "cache_text.emphasis=none")
    assert "cache_text" not in stages_of(output) or "8 captions in 1 shards: 0 encoded" in output


def test_a_mask_and_a_centre_of_interest(project):
    """They are part of their picture's row. How little it lets count is decided when training."""
    Image.new("L", (64, 64), 7).save(project / "data/images/5.mask.png")
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    assert "7 latents in 1 shards: 1 encoded" in output and "8 captions in 1 shards: 0 encoded" in output
    edit(project / "data/images/metadata.jsonl", '"text": "picture 4"', '"text": "picture 4", "focus": [0.9, 0.9]')
    output = dvc(project, "repro")
    assert stages_of(output) == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    assert "7 latents in 1 shards: 1 encoded" in output and "8 captions in 1 shards: 0 encoded" in output
    assert ran_changed(project, "train.mask_floor=0.5") == ["train", "merge", "sample"]
    assert ran_changed(project, "index.alpha_mask=true") == ["index"]  # no picture is transparent


def test_a_further_resolution(project):
    output = changed(project, "index.further_resolutions=[32]")
    assert stages_of(output) == ["index", "cache_latents", "train", "merge", "sample"]
    assert "14 latents in 1 shards: 7 encoded" in output


def test_pictures_in_place_of_a_cache(project):
    """Neither cache is made, and training runs again when a picture or a caption changes, and only then."""
    output = changed(project, "train.source=pictures")
    assert stages_of(output) == ["cache_latents", "cache_text", "train", "merge", "sample"]
    assert "cache_latents: train.source is pictures: pictures are encoded while training, and none is cached" in output
    assert re.search("cache_text: train.source is pictures: captions are encoded while training, and none is", output)
    for out in ("latents", "text"):
        assert [path.name for path in (project / "outs" / out).iterdir()] == ["not-cached.json"]
    edit(project / "data/images/metadata.jsonl", "picture 4", "a fourth picture")
    assert ran(project, "repro") == ["index", "cache_text", "train", "merge", "sample"]
    (project / "data/images/4.png").rename(project / "data/images/renamed.png")
    edit(project / "data/images/metadata.jsonl", "4.png", "renamed.png")
    assert ran(project, "repro") == ["index", "cache_latents"]
    picture(project, 7)
    (project / "data/images/7.png").rename(project / "data/images/renamed.png")
    assert ran(project, "repro") == ["index", "cache_latents", "cache_text", "train", "merge", "sample"]
    output = changed(project, "train.source=cache")
    assert "1 encoded" in output and stages_of(output) == ["cache_latents", "cache_text", "train", "merge", "sample"]


def test_text_encoders_that_are_trained(project):
    """The captions' cache is not made, and that of the latents stays. A changed caption trains again, another way to write
    the pictures' places does not."""
    assert ran_changed(project, "train.text_encoders=clip_l") == ["cache_text", "train", "merge", "sample"]
    assert [path.name for path in (project / "outs/text").iterdir()] == ["not-cached.json"]
    assert list((project / "outs/latents").glob("*.parquet"))
    assert merged_from_the_trained(project, "clip_l") == {"unet", "clip_l"}
    # the same captions, so that the out stays
    assert ran_changed(project, "train.text_encoders=both") == ["cache_text", "train", "merge", "sample"]
    assert merged_from_the_trained(project, "clip_l", "clip_g") == {"unet", "clip_l", "clip_g"}
    assert ran_changed(project, "train.text_encoder_learning_rate=2e-4") == ["train", "merge", "sample"]
    edit(project / "data/images/metadata.jsonl", "picture 0", "a nullth picture")
    assert ran(project, "repro") == ["index", "cache_text", "train", "merge", "sample"]
    (project / "data/images/0.png").rename(project / "data/images/moved.png")
    edit(project / "data/images/metadata.jsonl", '"0.png"', '"moved.png"')
    output = dvc(project, "repro")
    assert "train" not in stages_of(output)
    output = changed(project, "train.text_encoders=none", "train.text_encoder_learning_rate=1e-4")
    assert stages_of(output) == ["cache_text", "train", "merge", "sample"]
    assert "captions in 1 shards: 1 encoded" in output  # the changed one
    assert merged_from_the_trained(project) == {"unet"}


def merged_from_the_trained(project: Path, *encoders: str) -> set[str]:
    """Which components of outs/merge/merged.safetensors have a tensor that is not the base's; they are those of
    outs/train/weights/unet.ckpt, where with the UNet these text encoders are."""
    merged = safetensors.read(project / "outs/merge/merged.safetensors")
    base = {}
    for part in ("clip_l", "clip_g", "unet"):
        base |= ckpt.read(project / f"outs/convert/{part}.ckpt")
    trained = ckpt.read(project / "outs/train/weights/unet.ckpt")
    assert {part_of(name) for name in trained} == {"unet", *encoders}
    found = set()
    for name, tensor in merged.items():
        if (own := to_mindspore(name)) in base and tensor.count:
            values = np.asarray(tensor.array())
            np.testing.assert_array_equal(values, (base | trained)[own].array())
            if not np.array_equal(values, base[own].array()):
                found.add(part_of(name))
    return found


def test_another_vae(project):
    edit(project / "params.yaml", "vae: data/base/tiny_sdxl.safetensors", "vae: data/base/other.safetensors")
    assert ran(project, "repro") == ["convert", "cache_latents", "train", "merge", "sample"]


def test_a_lora_that_is_merged_into_the_base(project):
    """Of the UNet alone it encodes nothing. Its content counts; another file beside it runs convert, whose outs stay."""
    after = ["convert", "train", "merge", "sample"]
    lora(project, "style", "lora_unet_middle_block_1_proj_in", 128)
    assert ran_changed(project, "model.loras=[{path: style.safetensors, weight: 0.5}]") == after
    lora(project, "style", "lora_unet_middle_block_1_proj_out", 128)
    assert ran(project, "repro") == after
    lora(project, "unused", "lora_unet_middle_block_1_proj_in", 128)
    assert ran(project, "repro") == ["convert"]
    lora(project, "words", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 64)
    output = changed(project, "model.loras=[{path: words.safetensors}]")
    assert stages_of(output) == ["convert", "cache_text", "train", "merge", "sample"]
    assert re.search(r"(\d+) captions in 1 shards: \1 encoded", output)
    assert ran_changed(project, "model.loras=[]") == ["convert"]  # and the rest is as it was


def lora(project: Path, name: str, layer: str, width: int) -> None:
    values = np.full((width, 2), 0.1, np.float32)
    parts = {f"{layer}.lora_up.weight": values, f"{layer}.lora_down.weight": values.T}
    write(project / f"data/loras/{name}.safetensors", parts, {layer: 2}, {})


def test_a_training_setting(project):
    assert ran(project, "exp", "run", "-S", "train.learning_rate=1e-5") == ["train", "merge", "sample"]


def test_an_adapters_rank(project):
    """The stand-in for the train stage writes an adapter of that rank then."""
    assert ran_changed(project, "train.adapter=lora") == ["train", "merge", "sample"]
    assert ran_changed(project, "train.rank=8") == ["train", "merge", "sample"]
    weights = {path.name for path in (project / "outs/train/weights").iterdir()}
    assert "adapter.safetensors" in weights and "unet.ckpt" not in weights
    assert ran_changed(project, "train.adapter=none", "train.rank=16") == []  # as it was


def test_which_of_the_trained_weights(project):
    """Of a training that keeps some in between; the choice trains nothing."""
    assert ran_changed(project, "train.save_interval=100") == ["train", "merge", "sample"]
    assert ran_changed(project, "merge.weights=300") == ["merge", "sample"]
    assert ran_changed(project, "merge.weights=raw") == []  # DVC has both stages' outs of before


def test_other_weights_to_start_from(project):
    """And their content: the file is a dependency."""
    start = project / "data/base/start.ckpt"
    start.write_bytes((project / "outs/convert/unet.ckpt").read_bytes())
    assert ran_changed(project, "train.init_from=data/base/start.ckpt") == ["train", "merge", "sample"]
    start.write_bytes(start.read_bytes()[:-2] + b"\x00\x01")
    assert ran(project, "repro") == ["train", "merge", "sample"]  # an adapter is merged into it and drawn with it


def test_a_new_preview_is_encoded_alone(project):
    output = changed(project, 'train.previews=["a green star"]')
    assert stages_of(output) == ["cache_text", "train", "merge", "sample"]
    assert re.search(r"captions in 1 shards: 1 encoded", output)
    with_size = 'train.previews=[{prompt: "a green star", width: 96}]'
    output = changed(project, with_size)
    assert stages_of(output)[:2] == ["cache_text", "train"] and "captions in 1 shards: 0 encoded" in output


def test_what_the_unet_predicts(project):
    """convert looks at the base's marks again; its outs stay the same, so that the caches are skipped."""
    assert ran_changed(project, "diffusion.prediction=v") == ["convert", "train", "merge", "sample"]


@pytest.mark.parametrize("key", ["scaling_factor=0.18215", "shift_factor=0.1"])
def test_the_scale_of_the_latents_encodes_nothing(project, key):
    """merge runs for the weights that train made."""
    assert ran_changed(project, f"diffusion.{key}") == ["train", "merge", "sample"]


def test_flows_shift_and_a_schedule_without_signal(project):
    """The shift is of training and sampling; convert looks at the base's marks for the other."""
    changed(project, "diffusion.prediction=flow")
    assert ran_changed(project, "diffusion.flow_shift=2.5") == ["train", "merge", "sample"]
    changed(project, "diffusion.prediction=v", "diffusion.flow_shift=1.0")
    expected = ["convert", "train", "merge", "sample"]
    assert ran_changed(project, "diffusion.zero_terminal_snr=true") == expected


@pytest.mark.parametrize(
    "change",
    ["groups=[{pattern: '*.attn2.*', learning_rate: 2.0}]", "timestep_distribution=logit_normal", "keep_best=true"],
)
def test_how_it_is_trained(project, change):
    assert ran_changed(project, f"train.{change}") == ["train", "merge", "sample"]


def test_the_steps_that_are_drawn(project):
    changed(project, "train.save_interval=100")
    assert ran_changed(project, "sample.saved_steps=[300]") == ["sample"]
    assert ran_changed(project, "sample.saved_steps=all") == ["sample"]


def test_guidance_scale(project):
    assert ran_changed(project, "sample.guidance_scale=7.5") == ["sample"]


@pytest.mark.parametrize(
    "change",
    ["prompts=[a star, {prompt: 'two hearts', negative_prompt: ring, seed: 3, guidance_scale: 2.5}]",
     "prompts.0=a moon", "sampler=dpmpp_2m_karras", "guidance_rescale=0.7"],
)  # fmt: skip
def test_what_is_drawn(project, change):
    assert ran_changed(project, f"sample.{change}") == ["sample"]
    params = load(project / "params.yaml")
    if change.startswith("prompts="):
        own = {"negative_prompt": "ring", "seed": 3, "guidance_scale": 2.5}
        assert params.sample.prompts == ["a star", Prompt(prompt="two hearts", **own)]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("index", ["index"]),
        ("convert", ["convert"]),
        ("cache_latents", ["cache_latents"]),
        ("cache_text", ["cache_text"]),
        ("train", ["train"]),
        ("merge", ["merge"]),
        ("sample", ["sample"]),
    ],
)
def test_an_edit_in_the_stages_own_code(project, stage, expected):
    """The stage runs again; its outs have the same bytes, so nothing after it does."""
    with open(project / f"stages/{stage}.py", "a") as script:
        script.write("\n# edited\n")
    assert ran(project, "repro") == expected


@pytest.fixture(scope="module")
def sets(project):
    """The project on another data set: `a` has three pictures, each of two captions, `b` a square one and a wide one. What
    a case changes stays."""
    root = project / "data/sets"
    for folder, number, width in (("a", 0, 130), ("a", 1, 130), ("a", 2, 130), ("b", 3, 130), ("b", 4, 390)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        save(root / f"{folder}/{number}.png", number, width, 130)
        (root / f"{folder}/{number}.txt").write_text(f"u, v, w, x, y, picture {number}")
        if folder == "a":
            (root / f"{folder}/{number}.caption").write_text(f"short {number}")
    found = {name: {"folder": name} for name in "ab"}
    write_sets(project, found)
    as_before = ("index.alpha_mask=false", "index.further_resolutions=[]")  # other tests change them
    changed(project, "data.images=data/sets", "train.previews=[]", *as_before)
    return found


def write_sets(project: Path, sets: dict[str, dict]) -> None:
    (project / "data/sets/sets.yaml").write_text(json.dumps({"sets": list(sets.values())}))


def ran_and_encoded(output: str) -> tuple[list[str], dict[str, int]]:
    """The stages that ran, without those after train, and how many rows each cache encoded."""
    rows = re.findall(r"(latents|captions) in \d+ shards: (\d+) encoded", output)
    return [stage for stage in stages_of(output) if stage not in ("merge", "sample")], {
        f"cache_{'text' if kind == 'captions' else kind}": int(count) for kind, count in rows
    }


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"a": {"weight": 2}, "b": {"weight": 1}}, {}),
        ({"a": {"chances": {"txt": 1, "caption": 3}}}, {}),
        ({"b": {"prefix": "sks"}}, {"cache_text": 2}),
        ({"b": {"keep_tags": 1, "shuffle_tags": True}}, {"cache_text": 16}),
        ({"a": {"flip": True}}, {"cache_latents": 3}),
        ({"a": {"resolution": 96}}, {"cache_latents": 6}),
        ({"b": {"crop": "random", "crops": 2}}, {"cache_latents": 4}),
        ({"b": {"background": [0, 0, 0]}}, {"cache_latents": 4}),
    ],
    ids=lambda one: " ".join(key for keys in one.values() if isinstance(keys, dict) for key in keys),
)
def test_a_key_of_a_set(project, sets, change, rows):
    """tests/data/test_sets.py has all keys, and the tables that each changes."""
    for name, keys in change.items():
        sets[name] |= keys
    write_sets(project, sets)
    assert ran_and_encoded(dvc(project, "repro")) == (["index", *rows, "train"], rows)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("index.caption_variants=9", {"cache_text": 2}),
        ("index.caption_seed=1", {"cache_text": 16}),  # of 9 and 9; one is drawn twice, one was there
        ("index.neighbors=1", {"cache_latents": 4}),  # of `b`; at 96 there is one bucket
        ("index.min_bucket=2", {"cache_latents": 2}),  # both crops of the square one, in the wide one's bucket
        ("index.max_samples=3", {"cache_latents": 0, "cache_text": 0}),
    ],
)
def test_a_key_of_index(project, sets, change, rows):
    assert ran_and_encoded(changed(project, change)) == (["index", *rows, "train"], rows)


def test_columns_of_other_names(project, sets):
    """In a folder they are those of its tables, of which this one has none: the outs stay."""
    assert ran_changed(project, "data.image_column=other", "data.caption_column=other") == ["index", "cache_latents"]
    for number in range(3):
        save(project / f"data/{number}.png", 10 + number, 64, 64)
    new = [(project / f"data/{number}.png").read_bytes() for number in range(3)]
    columns = {"image": new[:2], "later": new[1:], "text": ["a", "b"], "words": ["b", "c"]}
    pq.write_table(pa.table(columns), project / "data/columns.parquet")
    changed(project, "data.images=data/columns.parquet", "data.image_column=image", "data.caption_column=text")
    rows = {"cache_latents": 1, "cache_text": 0}
    assert ran_and_encoded(changed(project, "data.image_column=later")) == (["index", *rows, "train"], rows)
    rows = {"cache_text": 1}
    assert ran_and_encoded(changed(project, "data.caption_column=words")) == (["index", *rows, "train"], rows)

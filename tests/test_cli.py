"""One command line: all tools are listed, explain themselves alike and end with the codes that they say."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from pipeline import cli, params
from pipeline.__main__ import TOOLS
from pipeline.cache.building import previews
from pipeline.cache.building.text import make_job
from pipeline.data import __main__ as data_main
from pipeline.params import ParamsError
from pipeline.report.show_command import show
from pipeline.stage import StageError
from stages import index as index_stage
from tests import project
from tests.data import data_sets
from tests.training.training_samples import ROOT
from tests.weights import synthetic

CODES = "exit code: 0 all is well; 1 a problem was found, or it failed; 2 the command is not understood"


def start(folder, *arguments: str, module: str = "pipeline") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    (tmp_path / "clone").mkdir()
    project.copy_project(tmp_path / "clone")
    return tmp_path / "clone"


def test_the_help_lists_all_tools(tmp_path):
    done = start(tmp_path, "--help")
    assert done.returncode == 0 and CODES in done.stdout and "dvc repro" in done.stdout
    for name in TOOLS:
        assert f"\n    {name} " in done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_explains_itself_in_one_style(tmp_path, tool):
    done = start(tmp_path, tool, "--help")
    assert done.returncode == 0 and CODES in done.stdout
    assert done.stdout.startswith(f"usage: python -m pipeline {tool} [-h]")
    alone = start(tmp_path, "--help", module=TOOLS[tool][0].removesuffix(".__main__"))
    assert (alone.returncode, alone.stdout) == (0, done.stdout)  # python -m pipeline.plan and the like


@pytest.mark.parametrize(
    "arguments",
    [[], ["teleport"], ["preset"], ["preset", "sd15"], ["plan", "--images", "none"], ["doctor", "--quick"], ["cache"],
     ["cache", "rm"], ["cache", "gc", "--keep", "-1"], ["cache", "show", "--count", "0"], ["data", "--decode", "x"],
     ["weights"], ["weights", "inspect"]],
)  # fmt: skip
def test_a_command_that_is_not_understood(tmp_path, arguments):
    done = start(tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("usage: python -m pipeline") and not done.stdout


@pytest.mark.parametrize("tool", [["plan", "--images", "5"], ["data"], ["doctor", "--no-training"], ["preset", "tiny"]])
def test_outside_of_a_project_it_is_said(tmp_path, tool):
    done = start(tmp_path, *tool)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and "project's folder" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("error", "said"),
    [(StageError("a"), "x: a"), (ParamsError("b"), "x: b"), (FileNotFoundError(2, "None", "c"), "x: [Errno 2]")],
)
def test_what_the_user_can_mend_is_a_message_and_a_bug_is_not(error, said):
    made = cli.parser("x", "")

    def work(given):
        raise error

    with pytest.raises(SystemExit, match="python -m pipeline x: ") as ended:
        cli.run(made, work, [])
    assert said in str(ended.value)
    with pytest.raises(KeyError):
        cli.run(made, lambda given: {}["bug"], [])


def test_a_reader_that_goes_is_no_error(clone):
    script = f"{sys.executable} -m pipeline plan --images 10 --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], cwd=clone, capture_output=True, text=True)
    assert done.stdout == "{" and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_stages_need_no_dvc(clone):
    """Without dvc on PATH, and without a .dvc folder."""
    pictures = {"a.png": data_sets.picture(0, 64, 64), "a.txt": "a"}
    data_sets.write_folder(clone / "data/images", pictures)
    done = subprocess.run(
        [sys.executable, "-m", "stages.index"], cwd=clone, env=os.environ | {"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0 and (clone / "outs/index/images.parquet").exists(), done.stderr


# JSON


def as_json(folder, *arguments: str):
    done = start(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_plan_as_json(clone):
    found = as_json(clone, "plan", "--images", "100")
    assert found["fits"] and found["run"]["images"] == 100 and found["steps"] == 600 and found["hours"] is None
    assert start(clone, "preset", "sdxl-8x910b").returncode == 0
    done = start(clone, "plan", "--images", "100", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["fits"] and found["disk"]["fits"] else 1)  # of this machine's disk
    assert found["stays_bytes"]["weights"] == 2_567_463_684 * 4 and found["hours"]["best"] < found["hours"]["worst"]


def test_cache_as_json(clone):
    found = as_json(clone, "cache", "ls")
    assert found["caches"] == [] and found["store"]["states"] == 0
    done = start(clone, "cache", "show")
    assert done.returncode == 1 and "dvc repro cache_latents" in done.stderr and "Traceback" not in done.stderr


def test_data_as_json_and_as_lines(clone):
    files = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(5)} | {"0.txt": "a", "1.txt": "b"}
    files |= {"small.png": data_sets.picture(9, 8, 8), "broken.png": b"no picture", "lost.txt": "c", "x.heic": b"1"}
    data_sets.write_folder(clone / "pictures", files)
    found = as_json(clone, "data", "pictures")
    counts = [found[name] for name in ("pictures", "captioned", "decoded", "used")]
    assert found["form"] == "Folder" and counts == [7, 2, 7, 5]
    assert found["rejected"] == {"too small": 1, "broken": 1} or sum(found["rejected"].values()) == 2
    assert found["buckets"] == {"64x64": 5} and sum(found["lost"].values()) == 1
    assert found["left_alone"] and "caption" in next(iter(found["left_alone"]))
    done = start(clone, "data", "pictures", "--decode", "0")
    assert done.returncode == 0 and "pictures: Folder, 7 pictures, 2 with captions" in done.stdout
    assert not (clone / "outs").exists() and not (clone.parent / "store").exists()
    broken = data_sets.write_folder(clone / "broken", {"a.png": b"no picture"})
    assert start(clone, "data", str(broken)).returncode == 1


def test_data_show_shows_captions_with_their_variants(clone):
    """Three variants of four tags, of which the first is kept; in bytes as the plan counts them."""
    sets = "sets: [{folder: ., prefix: sks, shuffle_tags: true, keep_tags: 1, variants: 3}]"
    files = {"a.png": data_sets.picture(1, 64, 64), "a.txt": "x, a, b, c", "b.png": data_sets.picture(2, 64, 64)}
    data_sets.write_folder(clone / "tags", files | {"sets.yaml": sets})
    found = as_json(clone, "data", "show", "tags")
    assert (found["pictures"], found["given"], found["bytes"]) == (2, 1, 25_024 * found["rows"])
    a, b = found["shown"]
    assert (a["path"], b["path"]) == ("a.png", "b.png") and b["captions"] == [
        {"share": 1, "text": "sks", "text_2": None}
    ]
    assert 1 < len(a["captions"]) <= 3 and sum(one["share"] for one in a["captions"]) == pytest.approx(1)
    assert all(one["text"].startswith("sks x, ") for one in a["captions"])
    assert found["rows"] == len(a["captions"]) + 2  # and the empty one
    done = start(clone, "data", "show", "tags", "--count", "1")
    assert done.returncode == 0 and "a.png, set ." in done.stdout and "b.png" not in done.stdout
    assert f"cache_text will have {found['rows']} rows of 25,024 bytes" in done.stdout


@pytest.mark.parametrize(
    ("section", "changed", "rows"),
    [
        ("index", {}, 4 + 1),  # and the empty one
        ("index", {"max_samples": 1}, 1 + 1),
        ("train", {"previews": ["a fox", "x 0"]}, 4 + 1 + 1),
        ("cache_text", {"emphasis": "a1111"}, 4 + 1),
        ("train", {"source": "pictures"}, 0),
    ],
    ids=str,
)
def test_data_show_counts_the_rows_of_the_cache(clone, monkeypatch, section, changed, rows):
    """Those that cache_text makes after index: of previews too, and not of pictures that are rejected or left out."""
    pictures = {f"{n}.png": data_sets.picture(n % 4, 64, 64) for n in range(5)} | {
        "broken.png": b"x"
    }  # 4 is a copy of 0
    captions = {"0": "x 0", "1": "(x:1.2) [y]", "2": "x 2", "3": "x 3", "4": "x 2", "broken": "of no picture"}
    data_sets.write_folder(clone / "data/images", pictures | {f"{name}.txt": text for name, text in captions.items()})
    monkeypatch.chdir(clone)
    tree = yaml.safe_load((clone / "params.yaml").read_text())
    tree["index"]["max_rejected"] = 0.5
    tree[section] |= changed
    settings = params.check(tree, "params.yaml")
    index_stage.main(settings)
    found = show(None, settings, 9)
    assert (found["rows"], found["bytes"]) == (rows, 25_024 * rows)
    if rows:
        text, further = settings.cache_text, previews.texts(settings.train.previews)
        job = make_job("outs/index/captions.parquet", {}, None, None, text.chunks, 1, further, text.emphasis)
        assert rows == len(job.wanted.rows)
    used = 1 if "max_samples" in changed else 5
    assert (found["pictures"], len(found["shown"])) == (used, used)
    assert found["given"] == len({captions[one["path"].removesuffix(".png")] for one in found["shown"]})
    copies = [one["captions"] for one in found["shown"] if one["path"] in ("0.png", "4.png")]
    if used == 5:
        assert [{(one["share"], one["text"]) for one in copy} for copy in copies] == [{(0.5, "x 0"), (0.5, "x 2")}] * 2


def test_data_gives_up_the_buckets_that_the_index_would(tmp_path):
    """With few of the pictures decoded, each of these stands for as many as there are more."""
    sizes = [(64, 64)] * 8 + [(128, 32)] * 2
    pictures = {f"{number}.png": data_sets.picture(number, *size) for number, size in enumerate(sizes)}
    folder = data_sets.write_folder(tmp_path / "pictures", pictures)
    settings = params.load(ROOT / "params.yaml")

    def buckets(least: int, decode: int = 64) -> dict[str, int]:
        index = settings.index.model_copy(update={"min_bucket": least})
        return data_main.examine(str(folder), settings.model_copy(update={"index": index}), decode)["buckets"]

    assert len(buckets(1)) == 2 and buckets(2) == buckets(1) and buckets(3) == {"64x64": 10}
    assert buckets(2, decode=3) == {"64x64": 2, "128x32": 1}  # 3.3 of it
    assert buckets(4, decode=3) == {"64x64": 3}


def test_weights_as_json_and_as_lines(clone):
    from pipeline.models.config import TINY

    base = synthetic.write_checkpoint(clone / "base.safetensors", TINY)
    found = as_json(clone, "weights", "inspect", str(base))
    assert (found["form"], found["kind"], found["config"]) == ("safetensors", "base model", "tiny")
    assert {part["name"]: part["dtypes"] for part in found["components"]} == dict.fromkeys(
        ("unet", "clip_l", "clip_g", "vae"), "float16")  # fmt: skip
    assert sum(part["parameters"] for part in found["components"]) == 9_912_316
    done = start(clone, "weights", "inspect", str(base))
    assert done.returncode == 0 and "base model of model.config tiny" in done.stdout
    (clone / "x.safetensors").write_bytes(b"\x80\x02}q\x00.")
    done = start(clone, "weights", "inspect", "x.safetensors")
    assert done.returncode == 1 and "x.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_a_vae_alone_is_known(clone):
    import safetensors.numpy

    from pipeline.models.config import TINY
    from pipeline.weights import layout

    arrays = {name.removeprefix("first_stage_model."): synthetic.bits(name, shape, "float32")
              for name, shape in layout.shapes(TINY).items() if name.startswith("first_stage_model.")}  # fmt: skip
    safetensors.numpy.save_file(arrays, clone / "vae.safetensors", {"modelspec.title": "a\x1b[31mb"})
    found = as_json(clone, "weights", "inspect", "vae.safetensors")
    assert (found["kind"], found["config"], found["marks"]) == ("VAE", "tiny", {})
    assert found["metadata"] == {"modelspec.title": "a\\x1b[31mb"}

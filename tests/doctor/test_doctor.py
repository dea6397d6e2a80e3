"""The doctor on set-ups that are broken in one way each: the line that says so, and that the run cannot start."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest

from pipeline import params as schema
from pipeline import preset
from pipeline.data import far
from pipeline.doctor import __main__ as doctor
from pipeline.doctor import disks, inputs, machine
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, look
from pipeline.planning import device
from pipeline.planning import disk as planned
from pipeline.planning.run import from_params
from pipeline.stage import StageError
from pipeline.weights.adapters.file import write
from tests import project, stub_npus
from tests.data import data_sets, far_servers
from tests.training.training_samples import ROOT, params
from tests.weights import synthetic


def sdxl(name: str = "sdxl-8x910b", **changes):
    tree = schema.parse(preset.write(name, None).text, name)
    for key, value in changes.items():
        section, key = key.split("__")
        tree[section][key] = value
    return schema.check(tree, name)


def only(findings):
    (finding,) = findings if isinstance(findings, list) else [findings]
    return finding


# The machine


def test_python_and_packages_of_this_environment_are_right():
    assert machine.python().state == machine.packages().state == GOOD


def test_another_python_is_named(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    found = machine.python()
    assert found.state == BAD and "3.9.1; wanted >=3.11" in str(found) and "make repro" in found.do


def test_packages_of_other_versions_are_named(monkeypatch):
    real = machine._version
    other = {"mindspore": "2.5.0", "pillow": None}
    monkeypatch.setattr(machine, "_version", lambda name: other[name] if name in other else real(name))
    found = machine.packages()
    assert found.state == BAD and "mindspore 2.5.0 (wanted 2.10.0)" in found.found
    assert "pillow missing (wanted" in found.found and "pip install -r requirements.txt" in found.do


def test_where_there_are_npus_canns_packages_count(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 1)
    monkeypatch.setattr(machine, "_version", lambda name: None)
    assert machine.packages().do.endswith("-r requirements.txt -r requirements-npu.txt`")


def ended(code: int, out: str = "", err: str = ""):
    return lambda *args, **kwargs: subprocess.CompletedProcess(args, code, out, err)


def test_npus_that_mindspore_uses(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 8)
    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend")
    monkeypatch.setattr(machine.subprocess, "run", ended(0, "MindSpore 2.10.0\n"))
    found = only(machine.device(sdxl()))
    assert found.state == GOOD
    assert found.found == "Ascend: 8 NPUs for 8 processes; CANN: /usr/local/Ascend; MindSpore 2.10.0"


@pytest.mark.parametrize(
    ("npus", "said"),
    [(0, "this machine shows no NPU"), (4, "device.workers: 8, but this machine has 4 NPUs")],
)
def test_npus_that_are_too_few(monkeypatch, tmp_path, npus, said):
    stub_npus.show(monkeypatch, tmp_path, npus)
    found = only(look("device", machine.device, sdxl()))
    assert found.state == BAD and said in found.found


def test_npus_that_mindspore_cannot_use_are_told_in_its_words(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 8)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    error = 'Traceback (most recent call last):\n  File "x"\npipeline.stage.StageError: this machine has an NPU\n'
    monkeypatch.setattr(machine.subprocess, "run", ended(1, "", f"[WARNING] x\n{error}libascendcl.so: not found\n"))
    found = only(machine.device(sdxl()))
    assert found.state == BAD and "CANN: not sourced" in found.found and "Traceback" not in str(found)
    assert "this machine has an NPU libascendcl.so: not found" in str(found)


def test_a_mindspore_that_hangs(monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired(args, 1)

    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert "did not start within" in only(machine.device(params())).found


def test_what_an_npu_alone_can_do_is_missing_on_a_cpu(monkeypatch, tmp_path):
    stub_npus.show(monkeypatch, tmp_path, 0)
    found = only(look("device", machine.device, sdxl(device__target="auto", sample__precision="bfloat16")))
    assert found.state == BAD and "sample.precision: bfloat16 needs an Ascend NPU" in found.found


def test_sdxl_on_a_cpu_is_looked_at(monkeypatch):
    monkeypatch.setattr(machine.subprocess, "run", ended(0, "MindSpore 2.10.0\n"))
    states = [finding.state for finding in machine.device(sdxl("sdxl-1x910b", device__target="CPU"))]
    assert states == [GOOD, DOUBTFUL]


@pytest.mark.parametrize(("batch", "checkpointing", "state"), [(4, True, GOOD), (32, False, BAD)])
def test_memory_of_npus_by_the_planner(batch, checkpointing, state):
    found = sdxl(train__batch_size=batch, train__gradient_checkpointing=checkpointing)
    finding = machine.memory(found, from_params(found, 1000))
    assert finding.state == state and "GB of each NPU" in finding.found
    assert state == GOOD or all(way in finding.do for way in device.ways_to_fit(from_params(found, 1000)))


def test_memory_of_a_cpu(monkeypatch):
    found = params()
    assert machine.memory(found, from_params(found, 100)).state == GOOD
    monkeypatch.setattr(machine, "_free_memory", lambda: 10_000_000)
    finding = machine.memory(found, from_params(found, 100))
    assert finding.state == BAD and "0.0 GB are free" in finding.found and "train.batch_size" in finding.do
    assert finding.wanted.endswith(" GB more")


# Disks

Usage = namedtuple("Usage", "free")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    return tmp_path


def test_what_sdxl_takes_on_a_disk():
    run = from_params(sdxl(), 1000)
    parts = disks.needs(run)
    assert parts.items() >= planned.disk_bytes(run).items() and len(parts) == len(planned.disk_bytes(run)) + 1
    assert sum(name.startswith(disks._IN_STORE) for name in parts) == 2


@pytest.mark.parametrize(("free", "state"), [(1e9, BAD), (1e13, GOOD)])
def test_room_on_the_disk(here, monkeypatch, free, state):
    monkeypatch.setattr(disks.psutil, "disk_usage", lambda path: Usage(int(free)))
    found = sdxl()
    finding = only(disks.disk(from_params(found, 1000), linked=True))
    assert finding.state == state and f"{free / 1e9:.1f} GB are free for outs, store, DVC's cache" in finding.found
    need = sum(disks.needs(from_params(found, 1000)).values())
    wanted = f"{need / 1e9:.1f} GB free, {(need - free) / 1e9:.1f} more" if state == BAD else ""
    assert finding.wanted == wanted
    assert (state == GOOD) == (not finding.do) and "PIPELINE_STORE" in finding.do or state == GOOD


def test_files_that_are_copied_count_in_each_place(here, monkeypatch):
    monkeypatch.setattr(disks.psutil, "disk_usage", lambda path: Usage(10**15))
    found = sdxl()
    run = from_params(found, 1000)
    monkeypatch.setattr(disks, "_mount", lambda folder: ("/store" if "store" in str(folder) else "/", "ext4"))
    (here / "store").mkdir()
    parts = disks.needs(run)
    several = sum(size for name, size in parts.items() if not name.startswith(disks._IN_STORE))
    findings = disks.disk(run, linked=False)
    assert f"takes {2 * several / 1e9:.1f} more" in findings[0].found and "for store and" in findings[1].found
    assert f"takes {sum(parts.values()) / 1e9:.1f} more" in findings[1].found


def test_caches_that_are_there_need_no_room(here, monkeypatch):
    monkeypatch.setattr(disks.psutil, "disk_usage", lambda path: Usage(10**15))
    found = sdxl()
    run = from_params(found, 1000)
    before = only(disks.disk(run, True)).found
    (here / "outs/latents").mkdir(parents=True)
    with open(here / "outs/latents/a.parquet", "wb") as file:
        file.truncate(3 * 10**9)  # without blocks
    after = only(disks.disk(run, True)).found
    assert before != after and f"takes {sum(disks.needs(run).values()) / 1e9 - 3:.1f} more" in after


@pytest.mark.parametrize(
    ("mounts", "types", "reflinks", "said"),
    [
        ({}, "hardlink,copy", False, "hardlink between"),
        ({}, "copy", False, "DVC's cache.type is copy: it copies"),
        ({}, None, False, "DVC's cache.type is reflink, copy: it copies"),
        ({}, None, True, "reflink between"),
        ({"store": "/other"}, "hardlink", False, "between store and outs and between store and DVC's cache "),
    ],
)  # fmt: skip
def test_links(here, monkeypatch, mounts, types, reflinks, said):
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text(f"[cache]\n    type = {types}\n" if types else "")
    (here / "store").mkdir()
    if reflinks:
        monkeypatch.setattr(disks, "_link", lambda one, other: "reflink")
    else:
        monkeypatch.setattr(disks, "_mount", lambda folder: (mounts.get(folder.name, "/"), "ext4"))
    finding = only(disks.links())
    assert said in finding.found and (finding.state == GOOD) == said.endswith("between")
    assert finding.state == GOOD or finding.do
    assert sorted(path.name for path in here.iterdir()) == [".dvc", "store"] and not list((here / "store").iterdir())


def test_a_store_that_cannot_be_written_and_a_broken_config(here, monkeypatch):
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text("[cache]\n    type = teleport\n")
    assert ".dvc/config cannot be read" in only(look("links", disks.links)).found
    (here / ".dvc/config").write_text("")

    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disks.tempfile, "TemporaryFile", refuse)
    found = only(look("links", disks.links))
    assert found.state == BAD and "Read-only file system" in found.found


# Inputs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from pipeline.models.config import TINY

    return synthetic.write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors", TINY)


def weights(path, **changes):
    model = {"model.base": str(path), "model.vae": str(path)}
    return only(look("weights", inputs.weights, params(**model | changes)))


def test_weights_that_fit(tiny):
    found = weights(tiny)
    assert found.state == GOOD and "is tiny: 9,912,316 parameters, float16" in found.found


def test_weights_that_are_missing_or_of_another_kind(tiny, tmp_path):
    assert "nowhere.safetensors does not exist" in weights("nowhere.safetensors").found
    file = "sd_xl_base_1.0.safetensors"
    published = weights(f"data/here/{file}").do
    assert f"`hf download stabilityai/stable-diffusion-xl-base-1.0 {file} --local-dir data/here`" in published
    found = only(look("weights", inputs.weights, sdxl(model__base=str(tiny), model__vae=str(tiny))))
    assert found.state == BAD and "holds weights of the configuration tiny; set model.config to tiny" in found.found
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>")
    assert weights(tmp_path / "page.safetensors").state == BAD
    (tmp_path / "cut.safetensors").write_bytes(tiny.read_bytes()[:-100])
    assert weights(tmp_path / "cut.safetensors").state == BAD
    (tmp_path / "pickled.ckpt").write_bytes(b"\x80\x02}q\x00.")
    assert weights(tmp_path / "pickled.ckpt").state == BAD
    assert weights(tiny, **{"model.vae": str(tmp_path / "page.safetensors")}).state == BAD


def test_loras_that_fit_and_that_do_not(tiny, tmp_path):
    folder = {"model.lora_folder": str(tmp_path), "model.loras": [{"path": "a.safetensors"}]}
    assert "a.safetensors does not exist; wanted an adapter" in weights(tiny, **folder).found
    shutil.copy(tiny, tmp_path / "a.safetensors")
    found = weights(tiny, **folder)
    assert found.state == BAD and "a.safetensors is not an adapter of this model.config" in found.found
    layer, ones = "lora_unet_out_2", np.ones((4, 1), np.float32)
    parts = {f"{layer}.lora_up.weight": ones, f"{layer}.lora_down.weight": np.ones((1, 32, 3, 3), np.float32)}
    write(tmp_path / "a.safetensors", parts, {layer: 1.0}, {})
    assert weights(tiny, **folder).found.endswith("float16, with a.safetensors")
    absent = weights(tiny, **{"model.lora_folder": str(tmp_path / "none")})
    assert absent.state == BAD and "none is no folder" in absent.found


def test_another_start_of_training_is_looked_at(tiny, tmp_path):
    start = {"train.init_from": str(tmp_path / "start.safetensors")}
    absent = weights(tiny, **start)
    assert absent.state == BAD and "start.safetensors" in absent.found and "train.init_from" in absent.found
    shutil.copy(tiny, tmp_path / "start.safetensors")
    assert weights(tiny, **start).state == GOOD
    (tmp_path / "start.safetensors").write_text("<!DOCTYPE html><html>")
    assert weights(tiny, **start).state == BAD


def test_weights_print_nothing_of_their_own(tiny, capsys):
    weights(tiny)
    assert capsys.readouterr().out == ""


def test_tokenizers(tmp_path):
    found = params(**{"model.tokenizer": str(ROOT / "data/tokenizer")})
    assert only(inputs.tokenizer(found)).state == GOOD
    absent = only(look("tokenizer", inputs.tokenizer, params(**{"model.tokenizer": str(tmp_path)})))
    assert absent.state == BAD and "no vocab.json and no merges.txt" in absent.found
    assert f"`hf download openai/clip-vit-large-patch14 vocab.json merges.txt --local-dir {tmp_path}`" in absent.found
    other = only(look("tokenizer", inputs.tokenizer, sdxl(model__tokenizer=str(ROOT / "data/tokenizer"))))
    assert other.state == BAD and "1024 tokens and the text encoders of model.config sdxl-base know" in other.found


def data(path, settings=params, **changes):
    key = "data.images" if settings is params else "data__images"
    return look("data", inputs.data, settings(**{key: str(path)} | changes))


def test_data_that_is_right(tmp_path):
    files = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(20)} | {f"{n}.txt": "a caption" for n in range(20)}
    pictures, captions = data(data_sets.write_folder(tmp_path / "a", files))
    assert pictures.state == captions.state == GOOD and "20 pictures" in pictures.found
    assert "16 decoded" in pictures.found and "such as 'a caption'" in captions.found


def test_data_that_is_not(tmp_path):
    assert "no such folder" in only(data(tmp_path / "nowhere")).found
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in only(data(tmp_path / "empty")).found
    broken = data_sets.write_folder(tmp_path / "broken", {f"{n}.png": b"no picture" for n in range(4)})
    pictures, captions = data(broken)
    assert pictures.state == captions.state == BAD
    assert "of 4 decoded 4 are rejected" in pictures.found and "0 of these 4 pictures have captions" in captions.found
    assert "name.txt beside name.png" in captions.do


@pytest.mark.parametrize("images", ["hf://datasets/owner/name@main/data", "https://host/{00..99}.tar"])
def test_data_that_dvc_cannot_watch(images):
    finding = only(data(images))
    assert finding.state == BAD and f"data.images is {images}; wanted what DVC can watch" in str(finding)
    assert "into a file such as data/web.urls" in finding.do


def test_far_data_that_is_there_and_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(far, "WAITS", 0.01)
    tar = data_sets.write_tar(tmp_path / "0.tar", {"a.png": data_sets.picture(0, 64, 64), "a.txt": "a caption"})
    with far_servers.web({"0.tar": tar.read_bytes()}) as root:
        pictures, captions = data(f"{root}/0.tar")
        assert pictures.state == captions.state == GOOD and "1 decoded" in pictures.found
        missing = only(data(f"{root}/1.tar"))
    assert missing.state == BAD and "1.tar cannot be found: it is not there" in missing.found


def test_pictures_that_are_too_small_name_the_keys_and_a_preset_where_one_helps(tmp_path):
    small = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(8)} | {f"{n}.txt": "x" for n in range(8)}
    pictures, _ = data(data_sets.write_folder(tmp_path / "small", small), sdxl)
    assert pictures.state == BAD and "8 too small" in pictures.found
    assert "index.min_side" in pictures.do and "make preset" not in pictures.do  # they are the preset's settings
    pictures, _ = data(tmp_path / "small", sdxl, index__resolution=768)
    assert pictures.state == BAD and "index.min_side" in pictures.do and "make preset NAME=" in pictures.do


def test_one_bad_picture_and_one_without_a_caption_are_looked_at(tmp_path):
    files = {f"{n}.png": data_sets.picture(n, 64, 64) for n in range(12)} | {f"{n}.txt": "x" for n in range(11)}
    files["11.png"] = b"no picture"
    states = [finding.state for finding in data(data_sets.write_folder(tmp_path / "some", files))]
    assert states == [DOUBTFUL, DOUBTFUL]


# The command


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    project.copy_project(folder)
    (folder / "data/images").symlink_to(ROOT / "data/images")
    (folder / "data/base").symlink_to(ROOT / "data/base")
    return folder


def start(folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PIPELINE_STORE"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor", *arguments], cwd=folder,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip


def listed(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_demo_can_start_and_nothing_is_written(clone):
    before = listed(clone)
    done = start(clone, "--no-training")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "The run can start: `dvc repro`"
    assert "GB are free and training takes" in done.stdout  # of this computer, where auto finds no NPU
    names = ["Python", "packages", "settings", "device", "memory", "disk", "links", "weights", "tokenizer", "data"]
    assert [line[6:].split()[0] for line in lines[:-1]] == [*names, "captions", "training"]
    assert listed(clone) == before


def test_a_broken_one_cannot_start(clone, tmp_path):
    folder = shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("base: data/base/tiny", "base: data/base/other"))
    done = start(folder, "--no-training", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["can_start"] and "Traceback" not in done.stderr
    assert [one["name"] for one in found["findings"] if one["state"] == BAD] == ["weights"]
    (folder / "params.yaml").write_text(text.replace("batch_size: 16", "batch_size: many"))
    done = start(folder)
    assert done.returncode == 1 and "BAD   settings" in done.stdout and "train.batch_size" in done.stdout
    assert "-     weights    not looked at before params.yaml is right" in done.stdout
    assert done.stdout.splitlines()[-1] == "The run cannot start: settings"


@pytest.mark.parametrize("good", [True, False])
def test_the_run_can_start_only_where_the_two_steps_are_trained(clone, monkeypatch, capsys, good):
    def rehearse(found):
        if not good:
            raise StageError("step 0: the loss is nan")
        return 1.0

    monkeypatch.chdir(clone)
    monkeypatch.delenv("PIPELINE_STORE", raising=False)
    monkeypatch.setattr(doctor, "rehearse", rehearse)
    monkeypatch.setattr(machine, "device", lambda found: [doctor.Finding("device", GOOD, "CPU")])
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == (0 if good else 1)
    line, last = ("ok    training   2 steps", "The run can start") if good else (
        "BAD   training   step 0: the loss is nan", "The run cannot start: training",
    )  # fmt: skip
    assert lines[-2].startswith(line) and lines[-1].startswith(last), lines


def test_a_device_that_is_bad_is_not_trained_on(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(machine, "device", lambda found: [doctor.Finding("device", BAD, "no NPU")])
    monkeypatch.setattr(doctor, "rehearse", None)  # not called
    with pytest.raises(SystemExit):
        doctor.main([])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "-     training   not tried before the device is right",
        "The run cannot start: device",
    ]


def test_settings_that_few_want_are_looked_at(tmp_path, monkeypatch):
    text = (ROOT / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    assert [(one.state, one.name) for one in look("settings", doctor._settings)] == [(GOOD, "settings")]
    doubtful = re.sub(r"\b(steps: )600\b", r"\g<1>60000", text)
    doubtful = re.sub(r"\b(learning_rate: )1\.0e-3", r"\g<1>1.0e-7", doubtful)
    (tmp_path / "params.yaml").write_text(doubtful)
    assert doubtful != text
    found = look("settings", doctor._settings)
    assert {one.state for one in found} == {DOUBTFUL} and any("train.learning_rate" in one.found for one in found)


def test_a_doctor_that_falls_ill_says_where():
    def check():
        raise KeyError("x")

    assert str(look("weights", check)[0]) == "BAD   weights    could not be looked at: KeyError: 'x'"


# The cluster


def test_a_cluster_that_is_not_there(monkeypatch):
    from pipeline.doctor import cluster

    settings = params(**{"device.cluster": "auto"})
    monkeypatch.delitem(sys.modules, "pipeline.workers.cluster", raising=False)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "ray", None)
        found = only(look("cluster", cluster.cluster, settings))
    assert found.state == BAD and "Ray is not installed here" in found.found and "`make repro RAY=1`" in found.found
    ray = pytest.importorskip("ray", reason="Ray is not installed here")

    def none(*given, **options):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", none)
    found = only(look("cluster", cluster.cluster, settings))
    assert found.state == BAD and "no Ray cluster answers there" in found.found and "`ray start --head" in found.found


def test_the_doctor_looks_at_each_node(nodes, monkeypatch):
    """Which has this process's packages; where it seems to have others, they are named."""
    from pipeline.doctor import cluster

    settings = params(**{"device.cluster": nodes.address})
    found = only(cluster.cluster(settings))
    assert found.state == GOOD and found.found.startswith("2 nodes, 2 workers")
    for changed, state, said in (
        ({"device.nodes": 3}, DOUBTFUL, "training has 2 ranks, with batches of 6 x 2"),
        ({"device.nodes": 3, "device.min_nodes": 3}, BAD, "2 nodes can train"),
    ):
        wanted = params(**{"device.cluster": nodes.address, "train.batch_size": 8} | changed)
        found = only(cluster.cluster(wanted))
        assert (found.state, found.found) == (state, said)
    found = cluster.cluster(params(**{"device.cluster": nodes.address, "train.source": "pictures"}))
    assert [one.state for one in found] == [DOUBTFUL] and "data.images" in found[0].found
    found = cluster.cluster(params(**{"device.cluster": nodes.address, "device.target": "CPU", "device.workers": 2}))
    assert sorted(one.found for one in found[:2]) == [
        f"{n} has 1 CPUs for 2 workers (device.workers)" for n in ("127.0.0.2", "127.0.0.3")
    ]
    monkeypatch.setattr(cluster, "pins", lambda file: [("mindspore", "2.10.0"), ("pillow", "1")])
    monkeypatch.setattr(cluster, "_here", lambda names: {"mindspore": "2.10.0", "pillow": "1.0"})
    for finding in cluster.cluster(settings):
        assert finding.state == BAD and re.match(r"127\.0\.0\.\d: pillow \d[\d.]* \(1\.0\)$", finding.found)

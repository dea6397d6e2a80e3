"""Where a merged model says that it comes from: its metadata, its card and `weights show`."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.training import key, weights
from pipeline.weights import __main__ as tool
from pipeline.weights import card, ckpt, provenance
from pipeline.weights import safetensors as streamed
from pipeline.weights.convert import convert
from pipeline.weights.merge import merge
from tests.training import training_samples
from tests.weights import provenance_samples, synthetic

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = {name: {"name": f"{name}.safetensors", "file": True, "sha256": name[0] * 64} for name in ("base", "vae")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder after the merge stage."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("stages", "pipeline"):
        (root / folder).symlink_to(ROOT / folder)
    shutil.copy(ROOT / "params.yaml", root)
    base = synthetic.write_checkpoint(root / "base.safetensors", TINY, dtype="float16")
    convert(base, base, TINY, root / "outs/convert")
    (root / "outs/train/weights").mkdir(parents=True)
    shutil.copy(root / "outs/convert/unet.ckpt", root / "outs/train/weights")
    provenance_samples.write(root / "outs/train/weights")
    done = stage(root)
    assert done.returncode == 0, done.stderr
    return root


def stage(root: Path, **environment: str) -> subprocess.CompletedProcess:
    own = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"} | environment
    return subprocess.run([sys.executable, "-m", "stages.merge"], cwd=root, env=own, capture_output=True, text=True)


def header(file: Path) -> dict[str, str]:
    """By the library, as ComfyUI and others read it."""
    with safetensors.safe_open(file, "numpy") as opened:
        return opened.metadata()


def test_the_merged_model_says_all_that_modelspec_demands(project):
    found = header(project / "outs/merge/merged.safetensors")
    assert found["format"] == "pt"
    spec = {name.removeprefix("modelspec."): text for name, text in found.items() if name.startswith("modelspec.")}
    name = provenance_samples.run()["name"]
    assert spec.pop("hash_sha256").startswith("0x")
    assert spec == {
        "sai_model_spec": "1.0.1", "architecture": "stable-diffusion-xl-v1-tiny",
        "implementation": "https://github.com/Stability-AI/generative-models", "title": f"base fine-tuned {name[:8]}",
        "resolution": "64x64", "prediction_type": "epsilon",
    }  # fmt: skip


def test_its_hash_is_that_of_all_tensors_bytes(project):
    """As the specification has it: what follows the header."""
    file = project / "outs/merge/merged.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert header(file)["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[start:]).hexdigest()}"
    tensors = safetensors.numpy.load_file(file)
    in_order = b"".join(tensors[name].tobytes() for name in streamed.read(file))
    assert in_order == data[start:]


def test_its_tensors_are_those_of_a_file_without_metadata(project, tmp_path):
    parts = {part: project / f"outs/convert/{part}.ckpt" for part in ("unet", "clip_l", "clip_g", "vae")}
    merge(parts, TINY, "float16", tmp_path / "merge")
    plain = safetensors.numpy.load_file(tmp_path / "merge/merged.safetensors")
    found = safetensors.numpy.load_file(project / "outs/merge/merged.safetensors")
    assert list(plain) == list(found) and all(np.array_equal(plain[name], found[name]) for name in plain)
    assert len(ckpt.read(project / "outs/merge/merged.ckpt")) == len(found)


def test_kohyas_keys_say_what_was_trained(project):
    found = header(project / "outs/merge/merged.safetensors")
    sha = hashlib.sha256((project / "base.safetensors").read_bytes()).hexdigest()
    train = provenance_samples.run()["description"]["train"]
    wanted = {
        "ss_base_model_version": "sdxl_base_v1-0", "ss_sd_model_name": "base.safetensors", "ss_new_sd_model_hash": sha,
        "ss_steps": "6", "ss_max_train_steps": "6", "ss_num_train_images": "8", "ss_total_batch_size": "8",
        "ss_resolution": "(64, 64)", "ss_seed": "0", "ss_learning_rate": str(train["learning_rate"]),
        "ss_mixed_precision": "no",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert "ss_min_snr_gamma" not in found  # as there was none
    assert all(isinstance(text, str) and text != "None" for text in found.values())


@pytest.mark.parametrize(("weights", "steps"), [("raw", 6), ("ema", 6), ("best", 4), (2, 2)])
def test_the_steps_are_those_of_the_weights_that_were_taken(weights, steps):
    run = provenance_samples.run(best_step=4)
    found = provenance.metadata(run, ORIGIN, "tiny", 64, weights, "float16")
    assert (found["ss_steps"], found["ss_max_train_steps"]) == (str(steps), "6")
    assert found[f"{provenance.PREFIX}weights"] == str(weights)
    said = card.render(run, ORIGIN, 64, weights, "float16")
    assert f"| steps | {steps}{' of 6' if steps < 6 else ''} |" in said


def test_a_run_that_may_be_continued_says_how_long_it_was():
    run = provenance_samples.run()
    for key in ("steps", "epochs"):
        del run["description"]["train"][key]
    own = provenance.of_training(run)
    assert json.loads(own["params"])["train"]["steps"] == 6
    longer = provenance.of_training(run | {"name": "l" * 32, "steps": 8})
    assert provenance.differences(own, longer) == ["train.steps: 6 there, 8 here"]


def test_our_keys_hold_the_hashes_of_what_went_in(project):
    found = header(project / "outs/merge/merged.safetensors")
    own = {name.removeprefix(provenance.PREFIX): text for name, text in found.items() if name.startswith("sdxl_")}
    run = provenance_samples.run()
    assert own["base"] == own["vae"] == hashlib.sha256((project / "base.safetensors").read_bytes()).hexdigest()
    assert [own[name] for name in ("unet", "latents", "text", "samples")] == ["u" * 32, "l" * 32, "t" * 32, "s" * 32]
    assert (own["images"], own["training"], own["code"]) == (run["images"], run["name"], "c" * 32)
    split = {name: value for name, value in run["split"].items() if name != "ranks"}
    assert json.loads(own["params"])["train"] == run["description"]["train"] | split
    assert json.loads(own["versions"]) == {"mindspore": "2.10.0", "numpy": "1.26.4"}
    assert (own["weights"], own["dtype"]) == ("raw", "float16")


def test_the_same_inputs_give_the_same_bytes_and_a_date_only_where_one_is_given(project):
    folder = project / "outs/merge"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == ["README.md", "merged.ckpt", "merged.safetensors"]
    assert stage(project).returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert "modelspec.date" not in header(folder / "merged.safetensors")
    assert stage(project, SOURCE_DATE_EPOCH="1700000000").returncode == 0
    assert header(folder / "merged.safetensors")["modelspec.date"] == "2023-11-14T22:13:20Z"
    failed = stage(project, SOURCE_DATE_EPOCH="yesterday")
    assert failed.returncode == 1 and "wanted seconds since 1970" in failed.stderr and "Traceback" not in failed.stderr
    assert stage(project).returncode == 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("outs/train/weights/run.json", None, "dvc repro train"), ("outs/train/weights/run.json", "{", "is not JSON"),
     ("outs/convert/sources.json", None, "dvc repro convert"), ("outs/convert/sources.json", "[]", "lacks one of base")],
)  # fmt: skip
def test_without_the_facts_there_is_no_merge(project, name, text, said):
    path = project / name
    kept = path.read_text()
    path.unlink() if text is None else path.write_text(text)
    try:
        failed = stage(project)
    finally:
        path.write_text(kept)
    assert failed.returncode == 1 and said in failed.stderr and "Traceback" not in failed.stderr


def test_sdxl_has_stabilitys_name_and_v_and_zero_terminal_snr_are_said():
    run = provenance_samples.run(**{"diffusion.prediction": "v", "diffusion.zero_terminal_snr": True})
    found = provenance.metadata(run, ORIGIN, "sdxl-base", 1024, "ema", "float16")
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert (found["modelspec.prediction_type"], found["modelspec.resolution"]) == ("v", "1024x1024")
    assert found["ss_zero_terminal_snr"] == "True"


def test_the_keys_of_modelspec_are_kohyas():
    """Of a whole model, by its build_metadata (tests/golden/make_adapter_names.py)."""
    golden = json.loads(gzip.decompress((ROOT / "tests/golden/adapter_names.json.gz").read_bytes()))
    theirs = golden["modelspec_model"]
    found = provenance.metadata(provenance_samples.run(), ORIGIN, "sdxl-base", 1024, "raw", "float16")
    # a title and a date of its own call, and what it says of the tool
    own = {"modelspec.title", "modelspec.date", "modelspec.hash_sha256", "modelspec.implementation_version"}
    wanted = {key: value for key, value in theirs.items() if key not in own}
    assert {key: value for key, value in found.items() if key.startswith("modelspec.") and key not in own} == wanted


def test_a_folders_hash_is_what_sha256sum_says_of_its_weights(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/model.safetensors").write_bytes(b"a")
    (tmp_path / "model.safetensors").write_bytes(b"b")
    (tmp_path / "README.md").write_bytes(b"c")
    said = subprocess.check_output("find -name '*.safetensors' | sort | sed s,./,, | xargs sha256sum",
                                   shell=True, cwd=tmp_path)  # fmt: skip
    assert provenance.sha256(tmp_path) == hashlib.sha256(said).hexdigest()
    source = provenance.sources(tmp_path, tmp_path)["base"]
    assert (source["file"], source["name"]) == (False, tmp_path.name)


def test_training_and_merge_mean_one_file():
    assert provenance.RUN == key.FACTS


# The card


@pytest.mark.parametrize("name", ["sd_xl_base_1.0.safetensors", "base.safetensors", 'my: "base" # 日本.safetensors'])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_the_cards_front_matter_is_what_the_hub_reads(name, prediction):
    origin = ORIGIN | {"base": ORIGIN["base"] | {"name": name}}
    text = card.render(provenance_samples.run(**{"diffusion.prediction": prediction}), origin, 1024, "ema", "float16")
    official = name.startswith("sd_xl")
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    # by the Hub's own library; a file's name is none of a model there, and refused or taken for another's
    assert ModelCard(text).data.to_dict() == found
    assert found.get("base_model") == ("stabilityai/stable-diffusion-xl-base-1.0" if official else None)
    validate_repo_id(found.get("base_model", "owner/name"))
    assert official == (f"trained from {json.dumps(name, ensure_ascii=False)}\n" not in front)
    assert found["license"] == "unknown" and "put in yours" in front
    assert found["pipeline_tag"] == "text-to-image" and "stable-diffusion-xl" in found["tags"]
    assert f"`{'b' * 64}`" in body and "| steps | 6 |" in body
    assert ("predicts v" in body) == (prediction == "v") and ("rectified flow" in body) == (prediction == "flow")


def test_loras_that_were_merged_into_the_base_are_said():
    merged = {"name": "style.safetensors", "sha256": "d" * 64, "weight": 0.8}
    run, origin = provenance_samples.run(**{"train.adapter": "lora"}), ORIGIN | {"loras": [merged]}
    run["description"]["origin"] = origin | {"config": "tiny", "resolution": 64}
    text = card.render(run, origin, 1024, "raw", "float16")
    assert f"`style.safetensors` was merged into it before, times 0.8 (sha256 `{'d' * 64}`).\n" in text
    whole = provenance.metadata(run, origin, "tiny", 64, "raw", "float16")
    for found in (whole, provenance.adapter_metadata(run, "raw", "float32")):
        assert json.loads(found[f"{provenance.PREFIX}loras"]) == [merged]
        # tools would take it for the base's own, which these weights are no longer
        assert found["ss_sd_model_name"] == "base.safetensors" and "ss_new_sd_model_hash" not in found
    assert "loras" not in card.render(run, ORIGIN, 1024, "raw", "float16")


def test_text_encoders_that_were_trained_are_in_the_card():
    trained = {"train.text_encoders": "clip_l", "train.text_encoder_learning_rate": 1e-5, "train.source": "pictures"}
    text = card.render(provenance_samples.run(**trained), ORIGIN, 1024, "raw", "float16")
    assert "| text encoders | CLIP-L, learning rate 1e-05 |" in text
    assert "text encoders |" not in card.render(provenance_samples.run(), ORIGIN, 1024, "raw", "float16")


def test_the_stage_writes_the_card(project):
    text = (project / "outs/merge/README.md").read_text()
    assert text.startswith("---\n# base_model: ") and "| weights | raw, as float16 |" in text


# python -m pipeline.weights show


def shown(root: Path, file: str, monkeypatch) -> dict:
    monkeypatch.chdir(root)
    return tool.show(Path(file))


def test_a_model_of_this_workspace_is_known(project, monkeypatch, capsys):
    found = shown(project, "outs/merge/merged.safetensors", monkeypatch)
    assert (found["workspace"], found["differences"]) == ("yes", [])
    assert "have the hash" in found["data"] and found["modelspec"]["resolution"] == "64x64"
    with pytest.raises(SystemExit) as ended:
        tool.main(["show", "outs/merge/merged.safetensors"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "of this workspace: yes" in said and "sai_model_spec: 1.0.1" in said
    with pytest.raises(SystemExit) as ended:
        tool.main(["show", "--json", "outs/merge/merged.safetensors"])
    assert ended.value.code == 0 and json.loads(capsys.readouterr().out) == found


def test_a_model_of_another_training_is_told_by_what_differs(project, monkeypatch, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(project / "outs/merge/merged.safetensors", other)
    run = project / "outs/train/weights/run.json"
    kept = run.read_text()
    changed = provenance_samples.run(**{"train.learning_rate": 0.5})
    changed["description"]["inputs"]["samples"] = "d" * 32
    run.write_text(json.dumps(changed))
    try:
        found = shown(project, str(other), monkeypatch)
    finally:
        run.write_text(kept)
    assert found["workspace"] == "no"
    assert any(
        line.startswith("train.learning_rate: ") and line.endswith(", 0.5 here") for line in found["differences"]
    )
    assert f"samples: {'s' * 32} there, {'d' * 32} here" in found["differences"]
    assert len(found["differences"]) == 2


def test_a_trained_adapter_of_this_workspace_is_known(project, monkeypatch, tmp_path):
    """As the train stage writes it, beside its run.json."""
    settings, path = {"train.adapter": "lora"}, project / "outs/train/weights/adapter.safetensors"
    origin = provenance.read(project / "outs/convert/sources.json", "convert") | {"config": "tiny", "resolution": 64}
    kept = (path.parent / "run.json").read_text()

    def trained(**changes) -> dict:
        run = provenance_samples.run(**settings | changes)
        run["description"]["origin"] = origin
        (path.parent / "run.json").write_text(json.dumps(run))
        return run

    run, layer = trained(), "lora_unet_input_blocks_4_1_proj_in"
    parts = {
        f"{layer}.lora_down.weight": np.ones((4, 8), np.float32),
        f"{layer}.lora_up.weight": np.ones((8, 4), np.float32),
    }
    weights.write_adapter(path, parts.items(), training_samples.params(**settings).train, run, "raw")
    try:
        found = shown(project, "outs/train/weights/adapter.safetensors", monkeypatch)
        assert (found["workspace"], found["differences"]) == ("yes", [])
        assert found["own"]["training"] == run["name"] and found["kohya"]["network_dim"] == "4"
        trained(**{"train.learning_rate": 0.5})
        found = shown(project, "outs/train/weights/adapter.safetensors", monkeypatch)
        assert found["workspace"] == "no"
        assert [line.split(": ")[0] for line in found["differences"]] == ["train.learning_rate"]
    finally:
        (path.parent / "run.json").write_text(kept)
        path.unlink()


def test_outside_of_a_workspace_nothing_is_said_of_it(project, monkeypatch, tmp_path):
    found = shown(tmp_path, str(project / "outs/merge/merged.safetensors"), monkeypatch)
    assert found["workspace"].startswith("not known: outs/train/weights/run.json is not there")


def test_a_damaged_model_is_told(project, monkeypatch, tmp_path, capsys):
    file = tmp_path / "damaged.safetensors"
    data = bytearray((project / "outs/merge/merged.safetensors").read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as ended:
        tool.main(["show", str(file)])
    assert ended.value.code == 1 and "changed or damaged" in capsys.readouterr().out


def test_files_of_others_are_shown_too(project, monkeypatch, tmp_path):
    file = tmp_path / "lora.safetensors"
    own = {"ss_tag": "\x1b[31m", "x": "1", "modelspec.title": "t"}
    safetensors.numpy.save_file({"a": np.ones(2, np.float16)}, file, own)
    found = shown(project, str(file), monkeypatch)
    assert (found["kohya"], found["others"], found["modelspec"]) == ({"tag": "\x1b[31m"}, {"x": "1"}, {"title": "t"})
    assert found["workspace"].startswith("no: it does not say") and "no hash" in found["data"]
    for text in ("[1]", "{", '{"train": 3}', "[" * 100_000):
        hostile = {f"{provenance.PREFIX}params": text, f"{provenance.PREFIX}base": "x"}
        safetensors.numpy.save_file({"a": np.ones(2, np.float16)}, file, hostile)
        assert shown(project, str(file), monkeypatch)["workspace"] == "no"


def test_a_file_without_tensors_is_told(tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "none.safetensors")
    assert tool.show(tmp_path / "none.safetensors")["data"] == "it holds no tensors"


def test_of_a_ckpt_what_stands_beside_it_is_shown(project, monkeypatch, tmp_path, capsys):
    """Its form has no metadata."""
    found = shown(project, "outs/train/weights/unet.ckpt", monkeypatch)
    assert found["data"].startswith("a MindSpore .ckpt, which has no metadata: ")
    assert found["data"].endswith("float16; outs/train/weights/run.json says:")
    assert (found["own"]["training"], found["workspace"]) == (provenance_samples.run()["name"], "yes")
    found = shown(project, "outs/convert/unet.ckpt", monkeypatch)
    base = hashlib.sha256((project / "base.safetensors").read_bytes()).hexdigest()
    assert (found["own"], found["workspace"]) == ({"base": base, "vae": base}, "yes")
    found = shown(project, "outs/merge/merged.ckpt", monkeypatch)
    assert found["data"].endswith("; outs/merge/merged.safetensors says:") and found["workspace"] == "yes"

    shutil.copy(project / "outs/train/weights/unet.ckpt", tmp_path)
    found = shown(project, str(tmp_path / "unet.ckpt"), monkeypatch)
    assert found["workspace"].startswith("not known: nothing beside it") and found["data"].endswith("float16")
    provenance_samples.write(tmp_path, **{"train.learning_rate": 0.5})
    found = shown(project, str(tmp_path / "unet.ckpt"), monkeypatch)
    assert found["workspace"] == "no" and found["differences"][0].startswith("train.learning_rate: 0.5 there, ")
    with pytest.raises(SystemExit) as ended:
        tool.main(["show", str(tmp_path / "unet.ckpt")])
    assert ended.value.code == 0 and f"{tmp_path}/run.json says:" in capsys.readouterr().out
    (tmp_path / "unet.ckpt").write_bytes((tmp_path / "unet.ckpt").read_bytes()[:-9])
    with pytest.raises(StageError, match=r"unet\.ckpt is cut short"):
        tool.show(tmp_path / "unet.ckpt")


def test_what_is_no_safetensors_file_is_refused(project, tmp_path):
    (tmp_path / "a").write_bytes(b"PK\3\4")
    with pytest.raises(StageError, match="pickled"):
        tool.show(tmp_path / "a")


def test_what_a_terminal_would_obey_is_not_printed_and_much_is_counted(tmp_path, capsys):
    file = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2, np.float16)}, file, {"\x1b]0;title\x07key": "1"})
    with pytest.raises(SystemExit):
        tool.main(["show", str(file)])
    assert "\x1b" not in (said := capsys.readouterr().out) and "title" in said
    safetensors.numpy.save_file({"a": np.ones(2, np.float16)}, file, {f"key{n}": "1" for n in range(1000)})
    with pytest.raises(SystemExit):
        tool.main(["show", str(file)])
    said = capsys.readouterr().out
    assert "... and 900 more" in said and len(said.splitlines()) < 120


def test_a_file_that_is_cut_short_is_no_whole_one(tmp_path):
    file = tmp_path / "short.safetensors"
    safetensors.numpy.save_file({"a": np.ones(200, np.float16)}, file)
    file.write_bytes(file.read_bytes()[:-9])
    for path in (file, tmp_path, tmp_path / "absent"):
        with pytest.raises(StageError, match=path.name):
            tool.show(path)

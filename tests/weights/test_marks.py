"""The marks of the objective: what a base's are checked against, and what merge writes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout, marks
from pipeline.weights import safetensors as streamed
from pipeline.weights.convert import convert
from pipeline.weights.merge import merge
from pipeline.weights.names import PREFIX
from tests.weights import synthetic

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/golden/diffusers_folder"
EMPTY = np.zeros(0, np.float32)
SETTINGS = [("epsilon", False), ("v", False), ("v", True), ("flow", False)]


def marked(path, tensors, metadata=None):
    safetensors.numpy.save_file({"some.weight": np.ones(2, np.float16)} | tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("names", "fit"),
    [
        ([], SETTINGS),
        (["v_pred"], [("v", False), ("v", True)]),
        (["v_pred", "ztsnr"], [("v", True)]),
        (["ztsnr"], [("v", True)]),
    ],
)
def test_which_settings_fit_which_marks(tmp_path, names, fit):
    base = marked(tmp_path / "x.safetensors", {name: EMPTY for name in names})
    for settings in SETTINGS:
        if settings in fit:
            marks.check(base, *settings)
        else:
            with pytest.raises(StageError, match="x.safetensors contradicts params.yaml"):
                marks.check(base, *settings)


def test_the_error_names_the_mark_the_key_its_value_and_what_to_do(tmp_path):
    base = marked(tmp_path / "x.safetensors", {"v_pred": EMPTY, "ztsnr": EMPTY.astype(np.float16)})
    with pytest.raises(StageError) as error:
        marks.check(base, "epsilon", False)
    assert "its tensor v_pred says that its UNet predicts v, and diffusion.prediction is epsilon" in str(error.value)
    assert "its tensor ztsnr " in str(error.value) and "diffusion.zero_terminal_snr is false" in str(error.value)
    assert "Set diffusion.prediction to v and diffusion.zero_terminal_snr to true" in str(error.value)


def test_the_name_alone_marks(tmp_path):
    """ComfyUI and A1111 look whether the key is there, and at nothing else; below the UNet's prefix it is no mark."""
    with pytest.raises(StageError, match="v_pred"):
        marks.check(marked(tmp_path / "x", {"v_pred": np.ones(1, np.int64)}), "epsilon", False)
    marks.check(marked(tmp_path / "y", {"model.diffusion_model.v_pred": EMPTY}), "epsilon", False)


@pytest.mark.parametrize("name", ["edm_mean", "edm_vpred.sigma_max"])
def test_edm_models_are_refused_by_name(tmp_path, name):
    base = marked(tmp_path / "x.safetensors", {"v_pred": EMPTY, name: np.ones((), np.float32)})
    with pytest.raises(StageError, match=f"is an EDM model .its tensor {name}"):
        marks.check(base, "v", True)


@pytest.mark.parametrize("key, value", [("modelspec.prediction_type", "v"), ("modelspec.predict_key", "v")])
def test_metadata_are_named_in_the_log_and_no_more(tmp_path, capsys, key, value):
    base = marked(tmp_path / "x.safetensors", {}, {key: value})
    marks.check(base, "v", False)
    assert capsys.readouterr().out == ""
    own = marked(tmp_path / "flow.safetensors", {}, {key: "flow"})  # as merge writes it
    marks.check(own, "epsilon", False)
    assert "its metadata say that it predicts flow; it is trained to predict epsilon" in capsys.readouterr().out
    for prediction in ("epsilon", "flow"):
        marks.check(base, prediction, False)
        assert f"its metadata say that it predicts v; it is trained to predict {prediction}" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    copy = Path(shutil.copytree(FOLDER, tmp_path / "sdxl"))
    (copy / "scheduler").mkdir()
    return copy


def test_a_diffusers_folder_says_it_in_its_scheduler(folder):
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({"prediction_type": "epsilon", "rescale_betas_zero_snr": False}))
    for settings in SETTINGS:
        marks.check(folder, *settings)
    for flow in ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"prediction_type": "flow_prediction"}):
        config.write_text(json.dumps(flow))
        marks.check(folder, "flow", False)
        with pytest.raises(StageError, match=r"flow|FlowMatch.* says that it is a rectified flow, .*is epsilon"):
            marks.check(folder, "epsilon", False)
    config.write_text(json.dumps({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    marks.check(folder, "v", True)
    with pytest.raises(
        StageError, match="v_prediction in its scheduler/scheduler_config.json says .*;.*zero_terminal_snr is false"
    ):
        marks.check(folder, "epsilon", False)
    config.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}))
    with pytest.raises(StageError, match="EDM model"):
        marks.check(folder, "v", True)
    config.write_text("[" * 100_000)
    with pytest.raises(StageError, match=r"scheduler_config.json is not a scheduler's configuration"):
        marks.check(folder, "v", True)


def test_simpletuner_marks_the_unets_own_file(folder):
    for file in (folder / "unet").iterdir():
        file.unlink()
    marked(folder / "unet/diffusion_pytorch_model.safetensors", {"v_pred": EMPTY, "ztsnr": EMPTY})
    marks.check(folder, "v", True)
    with pytest.raises(StageError, match="the tensor v_pred in its unet/"):
        marks.check(folder, "epsilon", False)


@pytest.mark.parametrize("settings, names", list(zip(SETTINGS, [[], ["v_pred"], ["v_pred", "ztsnr"], []])))
def test_merge_marks_what_the_training_had_and_the_result_is_a_base_again(tmp_path, settings, names):
    base = synthetic.write_checkpoint(tmp_path / "base.safetensors", TINY)
    convert(base, base, TINY, tmp_path / "convert")
    components = {part: tmp_path / f"convert/{part}.ckpt" for part in PREFIX}
    merge(components, TINY, "float16", tmp_path / "merge", marks.written(*settings))
    merged = tmp_path / "merge/merged.safetensors"

    library = safetensors.numpy.load_file(merged)
    assert sorted(library.keys() - layout.shapes(TINY).keys()) == names
    assert all(library[name].shape == (0,) and library[name].dtype == np.float16 for name in names)
    assert not ckpt.read(tmp_path / "merge/merged.ckpt").keys() & {"v_pred", "ztsnr"}
    marks.check(merged, *settings)
    for base in (merged, tmp_path / "merge/merged.ckpt"):
        convert(base, base, TINY, tmp_path / "again")
        for part in PREFIX:
            assert (tmp_path / f"again/{part}.ckpt").read_bytes() == (tmp_path / f"convert/{part}.ckpt").read_bytes()


def test_the_writer_takes_marks_and_the_reader_gives_them_back(tmp_path):
    entries = {"a": ("float16", (0,)), "b": ("float32", (2,)), "c": ("bfloat16", (3, 0))}
    with streamed.Writer(tmp_path / "x", entries) as writer:
        for name, (dtype, shape) in entries.items():
            writer.begin(name, dtype, shape)
            writer.write(bytes(8 if name == "b" else 0))
    found = streamed.read(tmp_path / "x")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == entries
    assert found["c"].array().shape == (3, 0) and list(found["a"].chunks()) == []
    assert safetensors.numpy.load_file(tmp_path / "x").keys() == entries.keys()


def test_the_convert_stage_stops_before_it_writes(tmp_path):
    for name in ("stages", "pipeline"):
        (tmp_path / name).symlink_to(ROOT / name)
    base = synthetic.write_checkpoint(tmp_path / "base.safetensors", TINY)
    safetensors.numpy.save_file(safetensors.numpy.load_file(base) | {"v_pred": EMPTY}, tmp_path / "v.safetensors")
    params = (ROOT / "params.yaml").read_text().replace("data/base/tiny_sdxl.safetensors", "v.safetensors")
    for prediction, code in (("epsilon", 1), ("v", 0)):
        (tmp_path / "params.yaml").write_text(params.replace("prediction: epsilon", f"prediction: {prediction}"))
        done = subprocess.run([sys.executable, "-m", "stages.convert"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert (tmp_path / "outs").exists() == (code == 0)
        if code:
            assert "v.safetensors contradicts params.yaml" in done.stderr and "Traceback" not in done.stderr

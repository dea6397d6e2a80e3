"""The field's marks of the objective that a model was trained with: what a base's say, and those that merge writes.

An empty tensor `v_pred` at the top level of a single file says that the UNet predicts v, and `ztsnr` that the noise
schedule has a zero terminal SNR. ComfyUI, Forge, reForge, A1111 and stable-diffusion.cpp look for the names among all
of the file's tensors (not below `model.diffusion_model.`), whatever dtype and shape they have, and take a file without
for epsilon. OneTrainer, SimpleTuner (in a diffusers folder's UNet) and ComfyUI write them. A diffusers folder says the
same in scheduler/scheduler_config.json. A single file of a rectified-flow model has no mark that a tool looks for: who
draws with one says so to the tool (docs/objectives.md)."""

from pathlib import Path

from pipeline.stage import StageError, shown
from pipeline.weights import safetensors
from pipeline.weights.files import has_parts, read_file, read_folder, read_json

V, ZERO_SNR = "v_pred", "ztsnr"
_FLOW = "flow"  # of a diffusers folder's scheduler only
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")  # Playground 2.5; CosXL


def written(prediction: str, zero_terminal_snr: bool) -> list[str]:
    """The marks of a training with these settings of `diffusion`."""
    return [V] * (prediction == "v") + [ZERO_SNR] * zero_terminal_snr


def check(base: Path, prediction: str, zero_terminal_snr: bool) -> None:
    """Raise StageError when the base's marks contradict these settings of `diffusion`; a base without any fits all.

    A v model without `ztsnr` may be trained with zero_terminal_snr: that is how such models come about. Metadata that
    says otherwise is named in the log and no more: tools write epsilon there for whatever they were not told."""
    marks, says = read(base)
    if edm := [mark for mark in _EDM if mark in marks]:
        raise StageError(f"{base} is an EDM model ({marks[edm[0]]}), whose noise levels and scaling are not those that "
                         "are trained here; wanted a base that predicts epsilon, v or flow")  # fmt: skip
    wrong, mend = [], []
    if V in marks and prediction != "v":
        wrong.append(f"{marks[V]} says that its UNet predicts v, and diffusion.prediction is {prediction}")
        mend.append("diffusion.prediction to v")
    if _FLOW in marks and prediction != "flow":
        wrong.append(f"{marks[_FLOW]} says that it is a rectified flow, and diffusion.prediction is {prediction}")
        mend.append("diffusion.prediction to flow")
    if ZERO_SNR in marks and not zero_terminal_snr:
        said = f"{marks[ZERO_SNR]} says that its noise schedule has a zero terminal SNR"
        wrong.append(f"{said}, and diffusion.zero_terminal_snr is false")
        mend.append("diffusion.zero_terminal_snr to true")
    if wrong:
        raise StageError(f"{base} contradicts params.yaml: {'; '.join(wrong)}. Set {' and '.join(mend)}, or take a "
                         "base without the mark")  # fmt: skip
    if V not in marks and says and says != prediction:
        print(f"{base}: its metadata say that it predicts {says}; it is trained to predict {prediction}, as "
              "diffusion.prediction says", flush=True)  # fmt: skip


def read(base: Path) -> tuple[dict[str, str], str]:
    """Mark -> where it stands; and what the metadata call the prediction ("" if nothing)."""
    return _of_folder(base) if has_parts(base) else _of_file(base)


def _of_file(base: Path) -> tuple[dict[str, str], str]:
    found = read_file(base)
    marks = {mark: f"its tensor {mark}" for mark in (V, ZERO_SNR, *_EDM) if mark in found}
    metadata = safetensors.metadata(base) if base.is_file() and safetensors.is_one(base) else {}
    # sd-scripts and modelspec call it prediction_type, ComfyUI predict_key
    says = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or ""
    return marks, {"v": "v", "v_prediction": "v", "epsilon": "epsilon", "flow": "flow"}.get(says, "")


def _of_folder(base: Path) -> tuple[dict[str, str], str]:
    unet = read_folder(base / "unet")
    marks = {mark: f"the tensor {mark} in its unet/" for mark in (V, ZERO_SNR, *_EDM) if mark in unet}
    path = base / "scheduler/scheduler_config.json"
    config = read_json(path, "a scheduler's configuration") if path.is_file() else {}
    prediction, name = config.get("prediction_type"), str(config.get("_class_name"))
    if name.startswith("EDM"):
        marks.setdefault(_EDM[0], f"_class_name {shown(name)} in its scheduler/{path.name}")
    if name.startswith("FlowMatch"):
        marks.setdefault(_FLOW, f"_class_name {shown(name)} in its scheduler/{path.name}")
    if prediction == "flow_prediction":
        marks.setdefault(_FLOW, f"prediction_type flow_prediction in its scheduler/{path.name}")
    if prediction == "v_prediction":
        marks.setdefault(V, f"prediction_type v_prediction in its scheduler/{path.name}")
    if config.get("rescale_betas_zero_snr") is True:
        marks.setdefault(ZERO_SNR, f"rescale_betas_zero_snr true in its scheduler/{path.name}")
    return marks, ""

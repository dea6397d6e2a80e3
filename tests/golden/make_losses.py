"""Write losses.json: losses of the batch of losses_rule.py with masks, class pictures and weightings, by sd-scripts,
OneTrainer, diffusers' train_dreambooth.py and k-diffusion.

    pip install torch diffusers        (made with torch 2.13.0, diffusers 0.39.0)
    python -m tests.golden.make_losses SD_SCRIPTS ONETRAINER DIFFUSERS K_DIFFUSION

with paths of clones of kohya-ss/sd-scripts (made with 48d368fa), Nerogar/OneTrainer (23df3832), huggingface/diffusers
(58eb52c0) and crowsonkb/k-diffusion (4601bf0). What computes the loss is run as it stands there, without the rest of its
modules: sd-scripts' process_batch, OneTrainer's ModelSetupDiffusionLossMixin, the statements of train_dreambooth.py's
loop, and k-diffusion's Denoiser."""

import __future__

import ast
import json
import sys
import typing
from abc import ABCMeta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from tests.golden import losses_rule as o

PREDICTION, TARGET, MASKS = map(torch.from_numpy, o.batch())
MASKS = MASKS[:, None].float() / 255
LOSS_WEIGHTS, TIMESTEPS = torch.from_numpy(o.LOSS_WEIGHTS).float(), torch.from_numpy(o.TIMESTEPS)
SCHEDULE = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear").alphas_cumprod


def run(nodes: list[ast.stmt], space: dict) -> None:
    """Annotations are left alone."""
    exec(compile(ast.Module(nodes, []), "peer", "exec", __future__.annotations.compiler_flag), space)


def define(file: Path, names: set[str], space: dict) -> None:
    """Functions, methods and classes of a file, by name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            run([node], space)


def sd_scripts(clone: Path) -> dict[str, float]:
    space = {"torch": torch, "typing": typing}
    names = {
        "apply_masked_loss",
        "apply_snr_weight",
        "apply_debiased_estimation",
        "prepare_scheduler_for_custom_training",
    }
    define(clone / "library/custom_train_functions.py", names, space)
    define(clone / "library/train_util.py", {"conditional_loss", "get_huber_threshold_if_needed"}, space)
    space["train_util"] = SimpleNamespace(**space)
    define(clone / "train_network.py", {"process_batch", "post_process_loss"}, space)
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    space["prepare_scheduler_for_custom_training"](scheduler, "cpu")
    trainer = SimpleNamespace(
        shift_scale_latents=lambda args, latents: latents,
        get_noise_pred_and_target=lambda *_, **__: (PREDICTION, TARGET, TIMESTEPS, None),
        post_process_loss=lambda *given: space["post_process_loss"](None, *given),
    )

    def loss(masks: dict, **own) -> float:
        off = ("min_snr_gamma", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss", "debiased_estimation_loss")
        given = dict.fromkeys((*off, "v_parameterization")) | own
        args = SimpleNamespace(loss_type="l2", masked_loss=bool(masks), **given)
        given = {"latents": PREDICTION, "text_encoder_outputs_list": [PREDICTION], "loss_weights": LOSS_WEIGHTS} | masks
        accelerator, nothing = SimpleNamespace(device="cpu"), [None] * 4
        of_args = [scheduler, torch.float32, torch.float32, accelerator, args, None, None]
        return float(space["process_batch"](trainer, given, *nothing, *of_args, train_text_encoder=False))

    images = {"conditioning_images": (2 * MASKS - 1).expand(-1, 3, -1, -1)}
    return {
        "class pictures": loss({}),
        "masks": loss(images),
        "alpha masks": loss({"alpha_masks": MASKS[:, 0]}),
        "masks, min_snr_gamma": loss(images, min_snr_gamma=o.SNR_GAMMA),
        "debiased": loss({}, debiased_estimation_loss=True),
        "debiased, v": loss({}, debiased_estimation_loss=True, v_parameterization=True),
    }


def onetrainer(clone: Path) -> dict[str, float]:
    modules, kinds = clone / "modules", Enum("LossWeight", "CONSTANT MIN_SNR_GAMMA DEBIASED_ESTIMATION P2")
    space = {"torch": torch, "F": F, "ABCMeta": ABCMeta, "LossWeight": kinds, "__name__": "peer"}
    define(modules / "util/loss/masked_loss.py", {"masked_losses", "masked_losses_with_prior"}, space)
    define(modules / "modelSetup/mixin/ModelSetupDiffusionLossMixin.py", {"ModelSetupDiffusionLossMixin"}, space)
    defaults = {  # data.append((name, value, type, nullable))
        node.elts[0].value: node.elts[1].value
        for node in ast.walk(ast.parse((modules / "util/config/TrainConfig.py").read_text()))
        if isinstance(node, ast.Tuple)
        and len(node.elts) == 4
        and all(isinstance(one, ast.Constant) for one in node.elts[:2])
    }
    asked = {name: value for name, value in defaults.items() if name.endswith("_strength") or "masked" in str(name)}

    def loss(weighting: str = "CONSTANT", **own) -> float:
        config = SimpleNamespace(
            **asked | own, loss_weight_fn=kinds[weighting], batch_size=4, gradient_accumulation_steps=1,
            model_type=SimpleNamespace(has_conditioning_image_input=lambda: False),
            loss_scaler=SimpleNamespace(get_scale=lambda **_: 1),  # LossScaler.NONE, its default
        )  # fmt: skip
        data = {"loss_type": "target", "predicted": PREDICTION, "target": TARGET, "timestep": TIMESTEPS}
        given = {"loss_weight": LOSS_WEIGHTS, "latent_mask": MASKS}
        mixin, cpu = space["ModelSetupDiffusionLossMixin"](), torch.device("cpu")
        losses = mixin._diffusion_losses(given, data, config, cpu, alphas_cumprod_fun=lambda t, _: SCHEDULE[t])
        return float(losses.mean())  # BaseStableDiffusionXLSetup.calculate_loss

    return {
        "class pictures": loss(masked_training=False),
        "masks": loss(masked_training=True, unmasked_weight=o.FLOOR),
        "masks, unmasked_weight as it comes": loss(masked_training=True),
        "unmasked_weight": asked["unmasked_weight"],
        "P2": loss("P2", masked_training=False, loss_weight_strength=o.P2_GAMMA),
        "debiased": loss("DEBIASED_ESTIMATION", masked_training=False),
    }


def diffusers(clone: Path) -> dict[str, float]:
    """`model_pred` and `target` to `loss`, of a batch whose second half are class pictures."""
    tree = ast.parse((clone / "examples/dreambooth/train_dreambooth.py").read_text())
    asked = "args.with_prior_preservation", "args.snr_gamma is None"
    steps = (node.body for node in ast.walk(tree) if isinstance(node, ast.With))
    ifs = ([one for one in body if isinstance(one, ast.If) and ast.unparse(one.test) in asked] for body in steps)
    found = max(ifs, key=len)
    args = SimpleNamespace(with_prior_preservation=True, snr_gamma=None, prior_loss_weight=o.PRIOR_WEIGHT)
    space = {"torch": torch, "F": F, "args": args, "model_pred": PREDICTION, "target": TARGET}
    assert len(found) == 3, list(map(ast.unparse, found))
    run(found, space)
    return {"class pictures": float(space["loss"])}


def k_diffusion(clone: Path) -> dict[str, float]:
    """Of Denoiser.loss with the weighting "soft-min-snr" and sigma_data² = 1 / gamma, of a model that is as wrong of x_0 as
    one with the error PREDICTION - TARGET of epsilon or of v."""
    space = {"nn": torch.nn, "torch": torch, "__name__": "peer"}
    define(clone / "k_diffusion/utils.py", {"append_dims"}, space)
    space["utils"] = SimpleNamespace(append_dims=space["append_dims"])
    define(clone / "k_diffusion/layers.py", {"Denoiser"}, space)
    alphas = SCHEDULE[TIMESTEPS]
    sigma, clean = ((1 - alphas) / alphas).sqrt(), torch.zeros_like(TARGET)

    def loss(of_x_0: torch.Tensor) -> float:
        """of_x_0: by how much the error of x_0 is larger than PREDICTION - TARGET."""
        denoised = clean - of_x_0[:, None, None, None] * (PREDICTION - TARGET)

        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            c_skip, c_out, c_in = (one[:, None, None, None] for one in denoiser.get_scalings(sigma))
            return (denoised - c_skip * x / c_in) / c_out

        denoiser = space["Denoiser"](model, o.SOFT_GAMMA**-0.5, "soft-min-snr")
        return float((denoiser.loss(clean, TARGET, sigma) * LOSS_WEIGHTS).mean())

    return {"epsilon": loss(sigma), "v": loss((1 - alphas).sqrt())}


if __name__ == "__main__":
    peers = zip((sd_scripts, onetrainer, diffusers, k_diffusion), map(Path, sys.argv[1:]), strict=True)
    losses = {peer.__name__: peer(clone) for peer, clone in peers}
    Path(__file__).with_name("losses.json").write_text(json.dumps(losses, indent=1) + "\n")

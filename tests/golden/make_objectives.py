"""Write objectives.npz: schedules of the learning rate by diffusers and transformers, histograms of timesteps drawn by
diffusers and torch, and of those drawn in a range by sd-scripts, OneTrainer and musubi-tuner; and what functions of
sd-scripts give: Huber losses with a schedule, pyramid noise, latents with input perturbation.

    pip install torch diffusers transformers        (made with torch 2.13.0, diffusers 0.39.0, transformers 5.24.0)
    python -m tests.golden.make_objectives sd-scripts OneTrainer musubi-tuner

with paths of clones of kohya-ss/sd-scripts (made with 48d368fa), Nerogar/OneTrainer (23df3832) and kohya-ss/musubi-tuner
(30c658c4). Their functions are run as they stand there, without the rest of their modules."""

import argparse
import ast
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import List, Optional, Tuple

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from transformers.optimization import get_wsd_schedule

from tests.golden import objectives_rule as o


def functions(folder: Path, wanted: dict[str, tuple[str, ...]], **space) -> SimpleNamespace:
    """Functions and methods by name, of file -> names, which see `space`."""
    space |= {"torch": torch, "math": math, "Optional": Optional, "Tuple": Tuple, "List": List}
    for file, names in wanted.items():
        for node in ast.walk(ast.parse((folder / file).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in names:
                exec(compile(ast.Module([node], []), file, "exec"), space)
    return SimpleNamespace(**{name: space[name] for names in wanted.values() for name in names})


def sd_scripts(folder: Path) -> SimpleNamespace:
    names = (
        "get_huber_threshold_if_needed",
        "conditional_loss",
        "get_timesteps",
        "get_noise_noisy_latents_and_timesteps",
    )
    wanted = {
        "library/train_util.py": names,
        "library/custom_train_functions.py": ("pyramid_noise_like", "fix_noise_scheduler_betas_for_zero_terminal_snr"),
    }
    return functions(folder, wanted, random=random, argparse=argparse, logger=SimpleNamespace(info=print))


def learning_rates() -> dict[str, np.ndarray]:
    found = {}
    for name, settings in o.RATES.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=o.PEAK)
        if name == "wsd":
            scheduler = get_wsd_schedule(optimizer, o.WARMUP, settings["decay_steps"], num_training_steps=o.STEPS)
        else:  # its polynomial has the end 1e-7
            given = {key: settings[key] for key in ("num_cycles", "power") if key in settings}
            scheduler = get_scheduler(name, optimizer, num_warmup_steps=o.WARMUP, num_training_steps=o.STEPS, **given)
        rates = []
        for _ in range(o.STEPS):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        found[f"lr_{name}"] = np.array(rates)
    return found


def histograms() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    found = {}
    for name, settings in o.DENSITIES.items():
        kind, shift = settings["distribution"], settings.get("shift", 1.0)
        if kind == "beta":
            u = torch.distributions.Beta(settings["alpha"], settings["beta"]).sample((o.DRAWS,))
        elif kind == "sigmoid":  # as sd-scripts' flux_train_utils and SimpleTuner write it
            u = torch.sigmoid(settings["sigmoid_scale"] * torch.randn(o.DRAWS))
        else:
            u = compute_density_for_timestep_sampling(
                kind, o.DRAWS, settings.get("logit_mean", 0.0), settings.get("logit_std", 1.0)
            )
        u = shift * u / (1 + (shift - 1) * u)
        found[f"drawn_{name}"] = torch.histc(u, o.PARTS, 0, 1).numpy() / o.DRAWS
    return found


def in_a_range(kohya: SimpleNamespace, onetrainer: Path, musubi: Path) -> dict[str, np.ndarray]:
    """How often each of the 1000 timesteps was drawn; of flow's times, those between it and the next."""
    low, high, count = o.LOW, o.HIGH, o.DRAWS
    torch.manual_seed(0)
    found = {"kohya": kohya.get_timesteps(low, high, count, "cpu")}
    kinds = SimpleNamespace(**{name: name for name in ("UNIFORM", "LOGIT_NORMAL", "HEAVY_TAIL", "BETA")})
    file, method = "modules/modelSetup/mixin/ModelSetupNoiseMixin.py", "_get_timestep_discrete"
    space = {"TimestepDistribution": kinds, "Tensor": torch.Tensor, "Generator": torch.Generator, "TrainConfig": object}
    draw = getattr(functions(onetrainer, {file: (method,)}, **space), method)
    for kind, weight, bias in (("UNIFORM", 0.0, 0.0), ("LOGIT_NORMAL", 0.3, -0.5), ("BETA", 0.7, 1.0)):
        config = SimpleNamespace(
            timestep_distribution=kind, min_noising_strength=low / 1000, max_noising_strength=high / 1000,
            noising_weight=weight, noising_bias=bias, timestep_shift=1.0,
        )  # fmt: skip
        found[f"onetrainer_{kind.lower()}"] = draw(None, 1000, False, torch.Generator().manual_seed(0), count, config)
    file, method = "src/musubi_tuner/training/trainer_base.py", "get_noisy_model_input_and_timesteps"
    space = {"argparse": argparse, "FlowMatchDiscreteScheduler": object}
    draw = getattr(functions(musubi, {file: (method,)}, **space), method)
    for kind, scale, shift in (("uniform", 1.0, 1.0), ("shift", 0.8, 2.5)):
        args = SimpleNamespace(
            timestep_sampling=kind, sigmoid_scale=scale, discrete_flow_shift=shift, min_timestep=low, max_timestep=high,
            preserve_distribution_shape=False,
        )  # fmt: skip
        ones = torch.ones(count, 1, 1, 1)  # as noise without latents, so that what comes out is the time
        found[f"musubi_{kind}"] = 1000 * draw(None, args, ones, 0 * ones, None, None, "cpu", torch.float32)[0]
    return {f"range_{name}": np.bincount(t.numpy().ravel().astype(int), minlength=1000) for name, t in found.items()}


def perturbed(kohya: SimpleNamespace) -> dict[str, np.ndarray]:
    """x_t with input perturbation, and the noise that is the target."""
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    args = SimpleNamespace(
        noise_offset=None, multires_noise_iterations=None, min_timestep=None, max_timestep=None,
        ip_noise_gamma=o.PERTURBATION, ip_noise_gamma_random_strength=False,
    )  # fmt: skip
    latents, *draws = map(torch.from_numpy, o.perturbation())
    drawn, randn_like, randint = iter(draws), torch.randn_like, torch.randint
    torch.randn_like = lambda *_, **__: next(drawn)
    torch.randint = lambda *_, **__: torch.from_numpy(o.HUBER_TIMESTEPS)
    noise, noisy, _ = kohya.get_noise_noisy_latents_and_timesteps(args, scheduler, latents)
    torch.randn_like, torch.randint = randn_like, randint
    return {"perturbed_noise": noise.numpy(), "perturbed_input": noisy.numpy()}


def huber(kohya: SimpleNamespace) -> dict[str, np.ndarray]:
    found = {}
    pred, target = map(torch.from_numpy, o.errors())
    for rescaled in (False, True):
        scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
        if rescaled:
            kohya.fix_noise_scheduler_betas_for_zero_terminal_snr(scheduler)
        for schedule in ("exponential", "snr"):
            args = SimpleNamespace(loss_type="huber", huber_schedule=schedule, huber_c=o.HUBER_C, huber_scale=1.0)
            c = kohya.get_huber_threshold_if_needed(args, torch.from_numpy(o.HUBER_TIMESTEPS), scheduler)
            losses = kohya.conditional_loss(pred, target, "huber", "none", c).mean((1, 2, 3))
            name = f"{schedule}{'_rescaled' if rescaled else ''}"
            found |= {f"huber_c_{name}": c.numpy(), f"huber_{name}": losses.numpy()}
    return found


def pyramids(kohya: SimpleNamespace) -> dict[str, np.ndarray]:
    found, randn = {}, torch.randn
    for name, (shape, iterations, discount) in o.PYRAMIDS.items():
        draw = o.generator()
        random.random = draw.random
        torch.randn = lambda *sizes: torch.from_numpy(draw.standard_normal(sizes, np.float32))  # noqa: B023
        noise = torch.from_numpy(o.noise(shape))[None]
        found[f"pyramid_{name}"] = kohya.pyramid_noise_like(noise, "cpu", iterations, discount)[0].numpy()
    torch.randn = randn
    return found


if __name__ == "__main__":
    scripts, onetrainer, musubi = map(Path, sys.argv[1:])
    kohya = sd_scripts(scripts)
    values = learning_rates() | histograms() | in_a_range(kohya, onetrainer, musubi)
    values |= huber(kohya) | pyramids(kohya) | perturbed(kohya)
    path = Path(__file__).with_name("objectives.npz")
    np.savez_compressed(path, **values)
    print(path.name, path.stat().st_size)

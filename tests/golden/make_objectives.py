"""Write objectives.npz: schedules of the learning rate by diffusers and transformers, histograms of timesteps drawn by
diffusers and torch, and what functions of sd-scripts give: Huber losses with a schedule, pyramid noise.

    pip install torch diffusers transformers        (made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.1)
    python -m tests.golden.make_objectives /path/to/sd-scripts        (made with 48d368fa of kohya-ss/sd-scripts)

The functions of sd-scripts are run as they stand there, without the rest of their modules."""

import argparse
import ast
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from transformers.optimization import get_wsd_schedule

from tests.golden import objectives_rule as o


def functions(folder: Path) -> SimpleNamespace:
    """Functions of sd-scripts by name."""
    wanted = {
        "library/train_util.py": ("get_huber_threshold_if_needed", "conditional_loss"),
        "library/custom_train_functions.py": ("pyramid_noise_like", "fix_noise_scheduler_betas_for_zero_terminal_snr"),
    }
    space = {
        "torch": torch, "math": math, "random": random, "argparse": argparse, "Optional": Optional,
        "logger": SimpleNamespace(info=print),
    }  # fmt: skip
    for file, names in wanted.items():
        for node in ast.parse((folder / file).read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                exec(compile(ast.Module([node], []), file, "exec"), space)
    return SimpleNamespace(**{name: space[name] for names in wanted.values() for name in names})


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
    kohya = functions(Path(sys.argv[1]))
    values = learning_rates() | histograms() | huber(kohya) | pyramids(kohya)
    path = Path(__file__).with_name("objectives.npz")
    np.savez_compressed(path, **values)
    print(path.name, path.stat().st_size)

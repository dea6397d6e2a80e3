"""Write samplers.npz: what diffusers' schedulers with SDXL's configuration make of the rule's noise and model; and
rescale.npz: what its rescaling of guidance makes of the rule's outputs.

    pip install torch diffusers        (made with torch 2.13.0, diffusers 0.39.0)
    python -m tests.golden.make_samplers"""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from diffusers.schedulers import scheduling_euler_ancestral_discrete

from tests.golden import euler_rule, samplers_rule
from tests.golden.make_euler import SDXL

SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (DDIMScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}


def path(name: str, case: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The timesteps, and what the UNet is given at each, with the last x behind it."""
    prediction, zero_terminal_snr = euler_rule.CASES[case]
    kind, changes = SCHEDULERS[name]
    changes = changes | {"prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[prediction]}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = kind.from_config(SDXL | changes)
    scheduler.set_timesteps(steps)
    if name != "ddim":
        # Else the first timestep is looked up, and where it stands there twice the second is taken, with an IndexError
        # at the end (Karras' steps with zero-terminal SNR).
        scheduler.set_begin_index(0)
    x = torch.from_numpy(euler_rule.noise()) * scheduler.init_noise_sigma
    xs, timesteps = [], scheduler.timesteps
    assert len(timesteps) == steps
    for step, t in enumerate(timesteps):
        # what the ancestral sampler draws
        scheduling_euler_ancestral_discrete.randn_tensor = lambda *_, **__: torch.from_numpy(samplers_rule.fresh(step))
        xs.append(scheduler.scale_model_input(x, t).numpy())
        x = scheduler.step(torch.from_numpy(euler_rule.output(xs[-1], int(t))), t, x).prev_sample
    return timesteps.numpy(), np.stack([*xs, x.numpy()])


if __name__ == "__main__":
    found = {}
    for name in samplers_rule.NAMES:
        for case in euler_rule.CASES:
            for steps in (samplers_rule.PATH_STEPS, *samplers_rule.END_STEPS):
                timesteps, xs = path(name, case, steps)
                key = samplers_rule.key(name, case, steps)
                found[key] = xs if steps == samplers_rule.PATH_STEPS else xs[-1]
                found[f"{key}_timesteps"] = timesteps.astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("samplers.npz"), **found)

    output, conditional = map(torch.from_numpy, samplers_rule.outputs())
    rescaled = {str(share): rescale_noise_cfg(output, conditional, share).numpy() for share in samplers_rule.RESCALES}
    np.savez_compressed(Path(__file__).with_name("rescale.npz"), **rescaled)

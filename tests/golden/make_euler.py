"""Write euler.npz: every x of 40 steps of diffusers' EulerDiscreteScheduler with SDXL's configuration.

    pip install torch diffusers        (made with torch 2.13.0, diffusers 0.39.0)
    python -m tests.golden.make_euler

The model is `euler_rule.output`, so that no network is needed."""

from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler

from tests.golden import euler_rule

# scheduler/scheduler_config.json of stabilityai/stable-diffusion-xl-base-1.0
SDXL = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def path(prediction: str, zero_terminal_snr: bool) -> dict[str, np.ndarray]:
    changes = {"prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[prediction]}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = EulerDiscreteScheduler.from_config(SDXL | changes)
    scheduler.set_timesteps(euler_rule.STEPS)
    x = torch.from_numpy(euler_rule.noise()) * scheduler.init_noise_sigma
    xs = [x.numpy()]
    for t in scheduler.timesteps:
        output = euler_rule.output(scheduler.scale_model_input(x, t).numpy(), int(t))
        x = scheduler.step(torch.from_numpy(output), t, x).prev_sample
        xs.append(x.numpy())
    return {"timesteps": scheduler.timesteps.numpy(), "sigmas": scheduler.sigmas.numpy(), "x": np.stack(xs)}


if __name__ == "__main__":
    found = {}
    for name, case in euler_rule.CASES.items():
        found |= {f"{name}_{key}": value.astype(np.float32) for key, value in path(*case).items()}
    np.savez_compressed(Path(__file__).with_name("euler.npz"), **found)

"""Write flow.npz: every x of some sampling runs of diffusers' FlowMatchEulerDiscreteScheduler, and its noised latents.

    pip install torch diffusers        (made with torch 2.13.0, diffusers 0.39.0)
    python -m tests.golden.make_flow

The model is `euler_rule.output`, so that no network is needed."""

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.golden import euler_rule


def path(shift: float, count: int) -> dict[str, np.ndarray]:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(count)
    x = torch.from_numpy(euler_rule.noise())
    xs = [x.numpy()]
    for t in scheduler.timesteps:
        output = euler_rule.output(x.numpy(), float(t))
        x = scheduler.step(torch.from_numpy(output), t, x).prev_sample
        xs.append(x.numpy())
    return {"timesteps": scheduler.timesteps.numpy(), "sigmas": scheduler.sigmas.numpy(), "x": np.stack(xs)}


def noised(shift: float) -> dict[str, np.ndarray]:
    """x_t at three of the 1000 timesteps that the scheduler is made with."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    x_0, noise = (torch.from_numpy(values) for values in euler_rule.latents_and_noise())
    timesteps = scheduler.timesteps[[10, 400, 990]]
    return {"noised_at": timesteps.numpy(), "noised": scheduler.scale_noise(x_0, timesteps, noise).numpy()}


if __name__ == "__main__":
    found = {}
    for name, (shift, count) in euler_rule.FLOW_CASES.items():
        values = path(shift, count) | noised(shift)
        found |= {f"{name}_{key}": value.astype(np.float32) for key, value in values.items()}
    np.savez_compressed(Path(__file__).with_name("flow.npz"), **found)

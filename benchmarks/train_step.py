"""A training step on a CPU against PyTorch's, in one run: python -m benchmarks.train_step --torch-python PATH

PATH is a Python with torch and diffusers. Both sides: a UNet of SDXL's form with 33.2 million parameters and 17
transformer blocks, batch 4, 32x32 latents, float32, 2 threads, mean squared error, the gradients' norm, AdamW; MindSpore
in graph mode O0 in the train stage's environment (dvc.yaml, stages/train.py), PyTorch eager. The first 40 steps are not
counted: in them MindSpore's kernels try numbers of threads. The sides run in turns, each as a process of its own, so
that a machine that slows down slows both."""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

CHANNELS, MULT, DEPTH, HEAD, CONTEXT, VECTOR = 64, (1, 2, 4), (0, 1, 2), 64, 256, 256 + 6 * 256
BATCH, SIDE, TOKENS, THREADS = 4, 32, 77, 2
WARM_UP = 40


def inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.standard_normal(shape, np.float32)

    return {
        "x": normal(BATCH, 4, SIDE, SIDE),
        "target": normal(BATCH, 4, SIDE, SIDE),
        "context": normal(BATCH, TOKENS, CONTEXT),
        "pooled": normal(BATCH, VECTOR - 6 * 256),
        "time_ids": np.full((BATCH, 6), 256, np.float32),
        "vector": normal(BATCH, VECTOR),
        "timesteps": np.array([10, 300, 600, 990], np.int32),
    }


def timed(step, steps: int) -> dict:
    """Seconds of the first call of `step()`, and of `steps` others; processor seconds of all threads per step."""
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    for _ in range(WARM_UP):
        step()
    seconds = []
    cpu = time.process_time()
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return {"first": first, "seconds": seconds, "cpu": (time.process_time() - cpu) / steps}


def peak_gigabytes() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def mindspore_side(steps: int) -> dict:
    import pipeline.device
    import mindspore as ms
    from pipeline.models.config import UNetConfig
    from pipeline.models.unet import UNet
    from pipeline.training.optimizer import AdamW, decays
    from pipeline.training.step import SampleLoss, Settings, TrainStep, Update

    pipeline.device.setup("CPU", plan_memory=True)
    ms.set_seed(0)
    unet = UNet(UNetConfig(CHANNELS, MULT, DEPTH, CONTEXT, VECTOR, HEAD), attention="tiled")
    optimizer = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8, fused=True)
    settings = Settings()
    train = TrainStep(SampleLoss(unet, settings), Update(optimizer, None, settings))
    values = inputs()
    arguments = [ms.Tensor(values[name]) for name in ("x", "timesteps", "context", "vector", "target")]
    arguments += [ms.Tensor(np.ones(BATCH, np.float32)), ms.Tensor(1e-4, ms.float32), ms.Tensor(0.0, ms.float32)]
    result = timed(lambda: train(*arguments)[0].asnumpy(), steps)
    return result | {"parameters": sum(p.size for p in unet.get_parameters()), "memory": peak_gigabytes()}


def torch_side(steps: int) -> dict:
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    widths = [CHANNELS * mult for mult in MULT]
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in DEPTH],
        up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in DEPTH[::-1]],
        layers_per_block=2,
        transformer_layers_per_block=[max(depth, 1) for depth in DEPTH],
        attention_head_dim=[width // HEAD for width in widths],
        cross_attention_dim=CONTEXT,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=VECTOR,
    ).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.01)
    values = {name: torch.from_numpy(value) for name, value in inputs().items()}
    conditions = {"text_embeds": values["pooled"], "time_ids": values["time_ids"]}

    def step():
        out = unet(values["x"], values["timesteps"], values["context"], added_cond_kwargs=conditions).sample
        loss = (out - values["target"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in unet.parameters()]).item()
        optimizer.step()

    result = timed(step, steps)
    return result | {"parameters": sum(p.numel() for p in unet.parameters()), "memory": peak_gigabytes()}


def run(python: str, side: str, steps: int) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    if side == "mindspore":
        environment |= {"ONEDNN_MAX_CPU_ISA": "DEFAULT", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [python, "-m", "benchmarks.train_step", "--side", side, "--steps", str(steps)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", metavar="PATH", help="a Python with torch and diffusers")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["mindspore", "torch"], help="run one side here and print its times as JSON")
    options = parser.parse_args()
    if options.side:
        side = mindspore_side if options.side == "mindspore" else torch_side
        print(json.dumps(side(options.steps)))
        return
    if not options.torch_python:
        parser.error("--torch-python is missing: a Python with torch and diffusers")

    ratios = []
    for _ in range(options.rounds):
        found = {side: run(python, side, options.steps) for side, python in
                 (("torch", options.torch_python), ("mindspore", sys.executable))}  # fmt: skip
        assert found["torch"]["parameters"] == found["mindspore"]["parameters"]
        median = {side: float(np.median(result["seconds"])) for side, result in found.items()}
        ratios.append(median["mindspore"] / median["torch"])
        for side, result in found.items():
            print(
                f"{side:10} step {1000 * median[side]:6.0f} ms (fastest {1000 * min(result['seconds']):.0f}), "
                f"processor {1000 * result['cpu']:.0f} ms, first step {result['first']:.0f} s, "
                f"peak memory {result['memory']:.2f} GB, {result['parameters'] / 1e6:.1f} M parameters",
                flush=True,
            )
    print(f"MindSpore / PyTorch: {np.median(ratios):.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()

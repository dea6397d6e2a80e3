"""A training step on a CPU against PyTorch's and against another commit's, in one run: python -m benchmarks.train_step
[--torch-python PATH] [--against COMMIT]

PATH is a Python with torch and diffusers. All sides: a UNet of SDXL's form with 33.2 million parameters and 17
transformer blocks, batch 4, 32x32 latents, float32, 2 threads, mean squared error, the gradients' norm, AdamW; MindSpore
in graph mode O0 in the train stage's environment (dvc.yaml, stages/train.py), as one graph of the gradients and one of
the update like that stage, another commit as its own script does; PyTorch eager. The first 40 steps are not counted: in
them MindSpore's kernels try numbers of threads. Each side is a process of its own, and they take one step in turns: a
virtual machine's processors may lie near each other in one minute and far in the next (docs/measured.md), and a step's
ratio is to the other side's step beside it."""

import argparse
import contextlib
import ctypes
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

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
        "timesteps": np.array([10, 300, 600, 990], np.float32),
    }


def serve(step, parameters: int, out) -> None:
    """Writes as lines to `out`: seconds of the first step, the number of parameters; then seconds of a step for each
    line that comes in; at the end processor seconds of all threads per step, the peak memory, and that of the counted
    steps alone."""

    def timed() -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    def say(*numbers) -> None:
        print(*numbers, file=out, flush=True)

    say(timed(), parameters)
    for _ in range(WARM_UP):
        step()
    peak = _peak()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    say("warm")
    cpu, steps = time.process_time(), 0
    for _ in sys.stdin:
        say(timed())
        steps += 1
    say((time.process_time() - cpu) / steps, peak, _peak())


def _peak() -> float:
    """GB"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def answers() -> TextIO:
    """Where a side writes to: the standard output, in whose place what libraries print goes to the errors."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def mindspore_side(adapter: str = "none") -> tuple:
    """(function that takes a step, number of parameters); of an adapter of this kind, of rank 16 in the layers that
    have one by default, number of its parameters."""
    import pipeline.device

    import mindspore as ms

    from pipeline.models import forms
    from pipeline.models.adapters import attach
    from pipeline.models.config import UNetConfig
    from pipeline.models.unet import UNet
    from pipeline.training.optimizers.adamw import AdamW
    from pipeline.training.optimizers.common import decays
    from pipeline.training.step import Apply, Gradients, SampleLoss, Settings, Update
    from pipeline.training.targets import targets
    from pipeline.weights.adapters.extract import TARGETS

    pipeline.device.setup("CPU")
    ms.set_seed(0)
    unet = UNet(UNetConfig(CHANNELS, MULT, DEPTH, CONTEXT, VECTOR, HEAD), attention="tiled")
    if adapter != "none":
        chosen = targets({p.name: p.shape for p in unet.get_parameters()}, TARGETS, ())
        attach(unet, forms.chosen(), adapter, chosen, rank=16, alpha=16.0, factor=-1, seed=0)
    optimizer = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8)
    settings = Settings()
    update = Update(optimizer, None, settings)
    gradients, apply = Gradients(SampleLoss(unet, settings), update), Apply(update)
    values = inputs()
    arguments = [ms.Tensor(values[name]) for name in ("x", "timesteps", "context", "vector", "target")]
    arguments.append(ms.Tensor(np.ones(BATCH, np.float32)))
    rate = ms.Tensor(1e-4, ms.float32)
    return lambda: apply(rate, *gradients(*arguments)).asnumpy(), sum(p.size for p in unet.trainable_params())


def torch_side() -> tuple:
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

    return step, sum(p.numel() for p in unet.parameters())


def start(python: str, side: str, module: str = "benchmarks.train_step", place: Path = Path()) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    if side != "torch":
        environment |= {"ONEDNN_MAX_CPU_ISA": "DEFAULT", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [python, "-m", module, "--side", side]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A working tree of this repository's commit."""
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "other")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, commit], cwd=here, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=here, check=True)


def answer(process: subprocess.Popen) -> list[str]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(process.args)} ended with exit code {process.wait()}; its message stands above")
    return line.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", metavar="PATH", help="a Python with torch and diffusers")
    parser.add_argument("--against", metavar="COMMIT", help="such as 2bdb3e1, before layers had an NPU's form")
    parser.add_argument("--steps", type=int, default=60, help="of each side")
    parser.add_argument("--side", choices=["mindspore", "torch"], help="what this script starts itself with")
    options = parser.parse_args()
    if options.side:
        out = answers()
        serve(*(mindspore_side if options.side == "mindspore" else torch_side)(), out)
        return
    if not options.torch_python and not options.against:
        parser.error("wanted --torch-python, a Python with torch and diffusers, or --against, a commit")

    with contextlib.ExitStack() as stack:
        starts = {"mindspore": (sys.executable, "mindspore", Path())}
        if options.torch_python:
            starts["torch"] = (options.torch_python, "torch", Path())
        if options.against:
            starts[options.against] = (sys.executable, "mindspore", stack.enter_context(checked_out(options.against)))
        processes, begun = {}, {}
        for side, (python, name, place) in starts.items():
            processes[side] = start(python, name, place=place)
            begun[side] = answer(processes[side])
            answer(processes[side])
        assert len({parameters for _, parameters in begun.values()}) == 1, begun
        seconds = in_turns(processes, begun, options.steps)
    for side in seconds.keys() - {"mindspore"}:
        print(f"now / {side}: {ratio(seconds['mindspore'], seconds[side])}")


def in_turns(processes: dict[str, subprocess.Popen], begun: dict[str, list[str]], steps: int) -> dict[str, list[float]]:
    """Seconds of each side's steps; prints what is to be said of each. `begun`: each side's first answer."""
    seconds = {side: [] for side in processes}
    for _ in range(steps):
        for side, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[side].append(float(answer(process)[0]))
    for side, process in processes.items():
        process.stdin.close()
        cpu, memory, *of_steps = map(float, answer(process))  # older commits have no peak of the counted steps
        low, median, high = 1000 * np.quantile(seconds[side], (0.1, 0.5, 0.9))
        print(
            f"{side:10} step {median:4.0f} ms (a tenth below {low:.0f}, a tenth above {high:.0f}), processor "
            f"{1000 * cpu:.0f} ms, first step {float(begun[side][0]):.0f} s, peak memory {memory:.2f} GB, "
            f"{''.join(f'of the counted steps {peak:.2f}, ' for peak in of_steps)}{int(begun[side][1]) / 1e6:.2f} M parameters"
        )
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> str:
    low, median, high = np.quantile(np.divide(ours, theirs), (0.1, 0.5, 0.9))
    return f"{median:.2f} (a tenth of the pairs below {low:.2f}, a tenth above {high:.2f})"


if __name__ == "__main__":
    main()

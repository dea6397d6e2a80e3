"""Say what a training run will take, before it is started: memory per device, cache, steps, hours.

Takes params.yaml as it stands, and the pictures and captions that outs/index lists; the options replace single numbers
of them. Bytes of parameters, gradients and optimizer are
exact, activations are estimated, and hours come from published step times of SDXL on Ascend 910B."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import cli
from pipeline.contradictions import side_multiple
from pipeline.models.config import CONFIGS
from pipeline.params import Params, load
from pipeline.training import memory
from pipeline.weights import layout
from pipeline.weights.names import PREFIX, to_mindspore

INDEX = Path("outs/index")
GB = 10**9
CARD = 64 * GB
# Part of a card that the system, the collectives' buffers and fragmentation take.
RESERVED = 5 * GB
# MindONE's tables, 8 cards, 1024 x 1024: (batch per card, seconds per step at best, at worst) over MindSpore 2.2.10 and
# 2.3.1, with and without flash attention, cache and sink.
PUBLISHED = ((1, 0.53, 1.10), (4, 1.07, None), (6, 2.15, 2.70))


@dataclass(frozen=True)
class Run:
    config: str
    images: int
    resolution: int
    devices: int
    batch_size: int
    accumulation: int
    steps: int | None
    epochs: int | None
    precision: str
    param_fp16: bool
    optimizer: str
    shard_optimizer: bool
    ema: bool
    gradient_checkpointing: bool
    attention: str
    latent_channels: int
    chunks: int
    captions: int | None = None  # distinct ones; None: as many as pictures
    rows_per_picture: int = 1  # of the latents' cache: mirrored, cropped
    validation_share: float = 0.0


def unet_shapes(config: str) -> memory.Shapes:
    """The UNet's parameters under MindSpore's names."""
    prefix = PREFIX["unet"]
    return {
        to_mindspore(name): shape for name, shape in layout.shapes(CONFIGS[config]).items() if name.startswith(prefix)
    }


def device_bytes(run: Run) -> dict[str, int]:
    """What each device holds."""
    config, shapes = CONFIGS[run.config], unet_shapes(run.config)
    side = run.resolution // config.vae.factor
    parts = {
        "parameters": memory.parameters(shapes, run.param_fp16),
        "gradients": memory.gradients(shapes, run.param_fp16, run.accumulation),
        "optimizer": memory.optimizer(shapes, run.optimizer, run.devices if run.shard_optimizer else 1),
    }
    if run.precision != "float32" and not run.param_fp16:
        parts["half-precision copies of the weights"] = memory.parameters(shapes, param_fp16=True)
    if run.ema:
        parts["EMA"] = memory.ema(shapes)
    parts["activations (estimated)"] = memory.activations(
        config.unet,
        run.batch_size,
        side,
        side,
        run.precision,
        run.attention,
        run.gradient_checkpointing,
        77 * run.chunks,
    )
    return parts


def cache_bytes(run: Run) -> int:
    """Both caches, all pictures in a square bucket."""
    config = CONFIGS[run.config]
    side = run.resolution // config.vae.factor
    latent = run.latent_channels * side * side * 2
    text = 77 * run.chunks * config.unet.context_dim * 2 + config.clip_g.projection_dim * 4
    captions = run.images if run.captions is None else run.captions
    return run.images * run.rows_per_picture * latent + captions * text


def steps(run: Run) -> int:
    """Of an epoch all pictures but those held out, as if they were all of one bucket."""
    pictures = max(1, round(run.images * (1 - run.validation_share)))
    return run.steps or run.epochs * ceil(pictures / (run.batch_size * run.accumulation * run.devices))


def hours(run: Run) -> tuple[float, float] | None:
    """At best and at worst, by the published step time whose batch is nearest, scaled to this run's batch, accumulation
    and resolution; None for what nothing was published of."""
    if run.config != "sdxl-base":
        return None
    batch, best, worst = min(PUBLISHED, key=lambda row: abs(row[0] - run.batch_size))
    # where one number is published, the spread of the nearest batch with two
    worst = worst or best * PUBLISHED[0][2] / PUBLISHED[0][1]
    factor = steps(run) * run.accumulation * run.batch_size / batch * (run.resolution / 1024) ** 2 / 3600
    return best * factor, worst * factor


def ways_to_fit(run: Run) -> list[str]:
    """Single settings, and then all of them together, with which the run fits a card."""
    changes = {"train.gradient_checkpointing: true": {"gradient_checkpointing": True}}
    if run.attention == "plain":
        changes["device.attention: tiled"] = {"attention": "tiled"}
    if run.precision == "float32":
        changes["train.precision: bfloat16"] = {"precision": "bfloat16"}
    if run.devices > 1 and run.optimizer == "adamw":
        changes["train.shard_optimizer: true"] = {"shard_optimizer": True}
    if run.optimizer == "adamw":
        changes["train.optimizer: adafactor"] = {"optimizer": "adafactor", "shard_optimizer": False}
    if run.batch_size > 1:
        changes[f"train.batch_size: 1 with gradient_accumulation_steps: {run.batch_size * run.accumulation}"] = {
            "batch_size": 1, "accumulation": run.batch_size * run.accumulation,
        }  # fmt: skip
    if run.ema:
        changes["train.ema: false"] = {"ema": False}
    found = [name for name, change in changes.items() if fits(replace(run, **change))]
    if found:
        return found
    for name, change in changes.items():
        run = replace(run, **change)
        found.append(name)
        if fits(run):
            return [" and ".join(found)]
    return []


def fits(run: Run) -> bool:
    return sum(device_bytes(run).values()) <= CARD - RESERVED


def count_index(folder: Path) -> tuple[int, int]:
    """(pictures that are used, captions) that the index lists, each content once. Raises OSError, pa.ArrowException."""
    images = pq.read_table(folder / "images.parquet", columns=["image", "rejected"])
    captions = pq.read_table(folder / "captions.parquet", columns=["caption"])
    used = images.filter(pc.is_null(images["rejected"]))
    return pc.count_distinct(used["image"]).as_py(), pc.count_distinct(captions["caption"]).as_py() + 1  # the empty one


def from_params(params: Params, images: int, captions: int | None = None) -> Run:
    train, device, latents = params.train, params.device, params.cache_latents
    return Run(
        config=params.model.config,
        images=images,
        resolution=params.index.resolution,
        devices=device.workers * device.nodes,
        batch_size=train.batch_size,
        accumulation=train.gradient_accumulation_steps,
        steps=train.steps,
        epochs=train.epochs,
        precision=train.precision,
        param_fp16=train.param_fp16,
        optimizer=train.optimizer,
        shard_optimizer=train.optimizer == "adamw" if train.shard_optimizer == "auto" else train.shard_optimizer,
        ema=train.ema,
        gradient_checkpointing=train.gradient_checkpointing,
        attention="plain" if device.attention == "plain" else "tiled",
        latent_channels=8 if latents.store == "moments" else 4,
        chunks=params.cache_text.chunks,
        captions=captions,
        rows_per_picture=(latents.crops if latents.crop == "random" else 1) * (2 if latents.flip else 1),
        validation_share=train.validation_share,
    )


def report(run: Run) -> str:
    parts = device_bytes(run)
    total = sum(parts.values())
    lines = [
        f"{run.config}, {run.devices} device(s), batch {run.batch_size} on each, {run.resolution} x {run.resolution}",
        "",
        "On each device:",
    ]
    lines += [f"  {name:40} {value / GB:10.3f} GB  ({value:,} bytes)" for name, value in parts.items()]
    lines += [f"  {'together':40} {total / GB:10.3f} GB"]
    lines += ["  (activations are counted from below, not measured on an NPU: leave room, try a few steps first)", ""]
    of = f"{run.images:,} pictures" + ("" if run.captions is None else f" and {run.captions:,} captions")
    lines += [f"Caches of {of}: {cache_bytes(run) / GB:.2f} GB", f"Steps: {steps(run):,}"]
    spread = hours(run)
    if spread:
        lines.append(f"Hours on Ascend 910B, by published step times: {spread[0]:.1f} to {spread[1]:.1f}")
    else:
        lines.append("Hours: no step times were published for this configuration")
    if fits(run):
        lines.append(f"Fits a card of {CARD // GB} GB, of which {RESERVED // GB} GB are left to the system.")
    else:
        ways = ways_to_fit(run)
        lines.append(f"Does NOT fit a card of {CARD // GB} GB, of which {RESERVED // GB} GB are left to the system.")
        lines += [f"  would fit with {way}" for way in ways] or [
            "  and no setting makes it fit: take a lower index.resolution"
        ]
    return "\n".join(lines)


def as_json(run: Run) -> dict:
    """What `report` says, in bytes and hours."""
    spread = hours(run)
    return {
        "run": asdict(run),
        "device_bytes": device_bytes(run),
        "card_bytes": CARD,
        "reserved_bytes": RESERVED,
        "fits": fits(run),
        "ways_to_fit": [] if fits(run) else ways_to_fit(run),
        "cache_bytes": cache_bytes(run),
        "steps": steps(run),
        "hours": spread and {"best": spread[0], "worst": spread[1]},
    }


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("plan", __doc__)
    made.add_argument(
        "--images", type=cli.positive, help=f"pictures, one caption each; default: what {INDEX} has (`dvc repro index`)"
    )
    made.add_argument("--config", choices=sorted(CONFIGS), help="model.config")
    made.add_argument("--devices", type=cli.positive, help="device.workers times device.nodes")
    made.add_argument("--batch-size", type=cli.positive, help="train.batch_size, of each device")
    made.add_argument("--resolution", type=cli.positive, help="index.resolution")
    made.add_argument("--steps", type=cli.positive, help="train.steps, in place of train.epochs")
    made.add_argument("--precision", choices=("float32", "float16", "bfloat16"), help="train.precision")
    cli.add_json(made)
    cli.run(made, lambda given: _run(given, made.error), arguments)


def _run(options: argparse.Namespace, refuse: Callable[[str], None]) -> None:
    given = {key: value for key, value in vars(options).items() if value is not None}
    json = given.pop("json")
    params = load()
    images, captions = (given.pop("images"), None) if "images" in given else _counted(refuse)
    if "steps" in given:
        given["epochs"] = None
    run = replace(from_params(params, images, captions), **given)
    multiple = side_multiple(CONFIGS[run.config])
    if run.resolution % multiple:
        refuse(f"--resolution must be a multiple of {multiple}, found {run.resolution}")
    if run.param_fp16 and run.precision != "float16":
        refuse(f"--precision {run.precision} contradicts train.param_fp16 true in params.yaml")
    cli.print_json(as_json(run)) if json else print(report(run))


def _counted(refuse: Callable[[str], None]) -> tuple[int, int]:
    """What outs/index lists, or an error."""
    for name in ("images.parquet", "captions.parquet"):
        if not (INDEX / name).exists():
            refuse(f"{INDEX / name} is not there: run `dvc repro index`, or say how many pictures with --images")
    images, captions = count_index(INDEX)
    if not images:
        refuse(f"{INDEX} lists no picture that is used: say how many with --images")
    return images, captions


if __name__ == "__main__":
    main()

"""Say what a training run will take, before it is started: memory of a device and of its host, disk, steps, hours.

Takes params.yaml as it stands, and the pictures and captions that outs/index lists; the options replace single numbers
of them. What is exact, counted, published or assumed is said beside each number. Ends with exit code 1 when the run
does not fit a device or the disk."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from math import sqrt
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import cli, recorded, store
from pipeline.cache.format.preparation import usual
from pipeline.contradictions.data import side_multiple
from pipeline.data.buckets import LEAST_SHARE
from pipeline.models.config import CONFIGS
from pipeline.params import Params, load
from pipeline.planning import device, disk, duration, host, timesteps, views
from pipeline.planning.device import CARD, GB, MARGIN, RESERVED, Parts
from pipeline.planning.run import Run, count_index, from_params
from pipeline.training.objective import objective

INDEX = Path("outs/index")


def report(run: Run, place: disk.Place | None = None, differs: list[str] = ()) -> str:
    """`place`: the disk that the run will write to, None where that is not known. `differs`: of `index_differs`."""
    title = f"{run.config}, {run.devices} device(s) ({run.target}), batch {run.batch_size} on each"
    title += f" x {run.accumulation} micro-batches" if run.accumulation > 1 else ""
    title += f", {_sizes(run, '{0} x {0}')}, {run.precision}"
    title += f", {run.adapter} of rank {run.rank}" if run.adapts else ""
    title += ", encoders in the loop" if run.encodes else ", text encoders in the loop" if run.reads_captions else ""
    head = [title, *_verdict(run, place), *_of_index(differs)]
    groups = [head, _memory(run), _host(run), _disk(run, place), _time(run, place)]
    return "\n\n".join("\n".join(lines) for lines in groups)


def _verdict(run: Run, place: disk.Place | None) -> list[str]:
    """A line each of memory, disk and time."""
    fits = "MAY fit" if device.relies_on_checkpointing(run) else "fits" if device.fits(run) else "does NOT fit"
    room = f"{device.needed(run) / GB:.1f} GB of the {device.room(run) / GB:.1f} that a run has of each"
    hosts, machine = sum(host.host_bytes(run).values()), host.this_machine()
    hosts = f"a node's host {hosts / GB:.1f} GB{' (MORE than this machine has)' if hosts > machine else ''}"
    wanted, spread = sum(disk.disk_bytes(run).values()) / GB, duration.hours(run)
    if place is None:
        room_on_disk = f"{wanted:.1f} GB"
    elif lacks := disk.missing(run, place):
        room_on_disk = f"does NOT fit: {wanted:.1f} GB in all, {lacks / GB:.1f} more than there is room for"
    else:
        room_on_disk = f"fits: {wanted:.1f} GB in all, {place.free / GB:.1f} free"
    hours = "not known: no step times were published for this configuration"
    if spread:
        hours = f"{spread[0]:.1f} to {spread[1]:.1f} for {duration.steps(run):,} steps, by published step times"
    return [
        f"  {'device memory':14} {fits}: {room}; {hosts}",
        f"  {'disk':14} {room_on_disk}",
        f"  {'hours':14} {hours}",
    ]


def _of_index(differs: list[str]) -> list[str]:
    if not differs:
        return []
    return [
        f"  {INDEX} was made with other settings, by dvc.lock (a stage run by hand is not in it): {', '.join(differs)}.",
        "  Its pictures, captions and buckets are what is counted here: run `dvc repro index` for those of now.",
    ]


def index_differs(resolution: int) -> list[str]:
    """In what settings, by dvc.lock, outs/index was made otherwise than params.yaml has them and with another
    resolution than this: "index.min_side 32 -> 64" of each."""
    if not Path("dvc.lock").exists():
        return []
    stages = (YAML(typ="safe").load(Path("dvc.lock")) or {}).get("stages", {})
    made = stages.get("index", {}).get("params", {}).get("params.yaml", {})
    made = {name: value for key, section in made.items() for name, value in recorded.leaves(key, section)}
    now = recorded.written("index") | {"index.resolution": resolution}
    return [f"{key} {value} -> {now[key]}" for key, value in made.items() if key in now and now[key] != value]


def _table(parts: Parts, indent: str = "  ") -> list[str]:
    return [f"{indent}{name:58} {size / GB:9.3f} GB  ({size:,} bytes)" for name, size in parts.items()]


def _memory(run: Run) -> list[str]:
    backward, update, form = device.backward(run), device.update(run), "a CPU's" if run.target == "CPU" else "an NPU's"
    steady, most = sum(device.stays(run).values()), sum(device.device_bytes(run).values())
    lines = ["Memory of each device", "  stays from step to step (exact, but what is said to be estimated):"]
    lines += _table(device.stays(run), "    ")
    lines += [f"  the backward pass beside it, at its fullest (counted by layer, in {form} form):"]
    lines += _table(backward, "    ")
    lines += ["  or the update (all gradients exact, temporaries in the order of its graph):", *_table(update, "    ")]
    if run.encodes:
        lines += ["  or the encoders, before a step:", *_table(device.encoding(run), "    ")]
    if validation := device.validation(run):
        lines += ["  or a validation of the averages:", *_table(validation, "    ")]
    lines += [
        *_table({"together: backward pass": steady + sum(backward.values())}),
        *_table({"together: update": steady + sum(update.values())}),
        *_table({"the larger": most, f"with {MARGIN:.0%} more of what is counted": device.needed(run)}),
    ]
    if run.target == "Ascend":
        lines += [
            f"  Counts were checked to {MARGIN:.0%}: a CPU's against its memory, an NPU's against MindSpore's order of a tiny",
            "  graph that no NPU ran (docs/measured.md). An NPU has otherwise than a CPU: flash attention, the fused AdamW,",
            "  norms in float32 of half inputs, GELU in one kernel, convolutions that keep their inputs alone.",
            "  Its kernels' workspaces and fragmentation are not known, and have a part of",
            f"  the {RESERVED // GB} GB that are left to the system.",
        ]
    room = f"a card of {CARD // GB} GB, of which {RESERVED // GB} GB are left to the system"
    room = room if run.target == "Ascend" else f"this computer: {device.room(run) / GB:.1f} GB a process"
    if device.relies_on_checkpointing(run):
        plain = device.needed(replace(run, gradient_checkpointing=False))
        return [
            *lines,
            f"  MAY fit {room}:",
            "    only by what gradient checkpointing is counted to save, by MindSpore's order of kernels; no NPU has shown",
            f"    it. Without it: {plain / GB:.1f} GB. Published for 64 GB, 1024 x 1024 and half weights (MindONE,",
            "    MindSpore 2.3.1): without it batch 4 ran, and 6 was out of memory. Try a few steps first.",
        ]
    if device.fits(run):
        return [*lines, f"  Fits {room}."]
    ways = [f"    by the count would fit with {way}" for way in device.ways_to_fit(run)]
    ways = ways or ["    and no setting makes it fit: take a lower index.resolution"]
    return [*lines, f"  Does NOT fit {room}.", *ways]


def _host(run: Run) -> list[str]:
    parts = host.host_bytes(run)
    total, machine = sum(parts.values()), host.this_machine()
    lines = ["Memory of each node's host (estimated)", *_table(parts)]
    lines += _table({"together": total, "this machine has": machine})
    return [*lines, "  MORE than this machine has."] if total > machine else lines


def _disk(run: Run, place: disk.Place | None) -> list[str]:
    parts = disk.disk_bytes(run)
    total = sum(parts.values())
    of = f"{run.images:,} pictures" + ("" if run.captions is None else f" and {run.captions:,} captions")
    latents, text = disk.cache_parts(run)
    lines = [
        "Disk",
        f"  No caches of {of}: they are encoded in every step"
        if run.encodes
        else f"  Caches of {of}: {latents:,} bytes of latents a picture, {text:,} of text a caption",
        *([] if run.encodes else [f"  {_rows(run)}"]),
        *_table(parts),
        *_table({"together": total}),
    ]
    if place is None:
        return lines
    lines += _table({"there already": place.used, "free": place.free})
    if lacks := disk.missing(run, place):
        lines.append(f"  Does NOT fit this disk: {lacks / GB:.1f} GB are missing.")
    return lines


def _rows(run: Run) -> str:
    of = f"at {_sizes(run, '{0}')}"
    of += f", with {run.neighbors} neighbouring bucket(s) at each" if run.neighbors else ""
    counted = "counted in the index" if run.counted else "at most"
    return (
        f"{run.rows:,} rows of latents to encode ({of}; {counted}), {run.pixels / 1e6:,.1f} megapixels through the VAE"
    )


def _sizes(run: Run, form: str) -> str:
    """The resolutions; where sets have others of their own, between which sizes the index's buckets are."""
    low, high = min(run.resolutions), max(run.resolutions)
    if run.counted and not (LEAST_SHARE * low**2 <= run.counted.smallest and run.counted.largest <= high**2):
        low, high = (round(sqrt(pixels)) for pixels in (run.counted.smallest, run.counted.largest))
        return f"{low}² to {high}² pixels (sets have resolutions of their own)"
    return " and ".join(map(form.format, run.resolutions))


def _time(run: Run, place: disk.Place | None) -> list[str]:
    lines = ["Time", f"  Steps: {duration.steps(run):,}"]
    spread = duration.hours(run)
    if spread:
        lines += [
            f"  Hours on Ascend 910B, by published step times: {spread[0]:.1f} to {spread[1]:.1f}",
            "    MindONE's, 0.53 s a step at best (8 cards, batch 1): MindSpore 2.3.1 with jit level O2, which 2.10",
            "    no longer has. They are not of this program.",
            *["    The lower ones are of cached latents and text, and here both are encoded in every step."]
            * run.encodes,
            *[
                "    They are of text encoders that are not trained: CLIP-L alone took a CPU's step 1.21 times as long (docs/pictures.md)."
            ]
            * (run.text_encoders != "none"),
        ]
    else:
        lines.append("  Hours: no step times were published for this configuration")
    if run.config == "sdxl-base":
        count = duration.kernels(run)
        launches = duration.launches(count)
        low, high = (duration.steps(run) * seconds / 3600 for seconds in launches)
        fused = duration.launches(count - run.accumulation * duration.JOINABLE)
        counted = (
            "counted in its graphs" if run.gradient_checkpointing else "estimated from its graphs with checkpointing"
        )
        lines += [
            f"  With O0 the host's launches alone: {launches[0]:.2f} to {launches[1]:.2f} s a step, "
            f"{low:.2f} to {high:.2f} hours",
            f"    {count:,} kernels a step ({counted}, which were compiled, not run) at "
            f"{1e6 * duration.LAUNCH[0]:.0f} to {1e6 * duration.LAUNCH[1]:.0f} µs (assumed).",
            f"    O1 fuses kernels: {fused[0]:.2f} to {fused[1]:.2f} s if each cast, sum and product joined another one.",
        ]
    count = duration.graphs(run)
    over = f"{run.buckets} bucket{'s' * (run.buckets != 1)}"
    filled = "an index says how many" if count is None else f"{count} at most, over {over}"
    lines += [
        f"  Graphs to compile: {filled}: for each bucket the gradients, when it is first met, and the loss where it is",
        "    validated; and the update, once. index.min_bucket makes them fewer; a second run reads them from the store.",
        "    Not measured on an NPU (MindONE's tables: 30 to 38 minutes a whole step's, with MindSpore 2.2.11 and 2.3.1;",
        "    on a CPU, as far as the choice of an NPU's kernels, sdxl-base's gradients took 215 s, its update 180 s)",
    ]
    size = disk.state_bytes(run)
    took = "not measured"
    if place:
        took = f"{size / place.speed:.1f} s at the {place.speed / GB:.2f} GB/s of this disk, measured now"
    lines.append(f"  Writing a state of {size / GB:.3f} GB, every {run.checkpointing_steps} steps: {took}")
    return lines


def as_json(run: Run, place: disk.Place, differs: list[str]) -> dict:
    """What `report` says, in bytes and hours."""
    spread = duration.hours(run)
    return {
        "run": asdict(run),
        "stays_bytes": device.stays(run),
        "backward_bytes": device.backward(run),
        "update_bytes": device.update(run),
        "encoding_bytes": device.encoding(run),
        "validation_bytes": device.validation(run),
        "needed_bytes": device.needed(run),
        "room_bytes": device.room(run),
        "fits": device.fits(run),
        "ways_to_fit": [] if device.fits(run) else device.ways_to_fit(run),
        "host_bytes": host.host_bytes(run),
        "host": {"memory_bytes": host.this_machine()},
        "disk_bytes": disk.disk_bytes(run),
        "disk": {"free_bytes": place.free, "used_bytes": place.used, "fits": not disk.missing(run, place)},
        "index_differs": differs,
        "rows": run.rows,
        "megapixels": run.pixels / 1e6,
        "steps": duration.steps(run),
        "graphs": duration.graphs(run),
        "hours": spread and {"best": spread[0], "worst": spread[1]},
    }


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("plan", __doc__)
    positive = cli.count(least=1, most=10**12 - 1)
    counted = f"pictures, one caption each; default: what {INDEX} has (`dvc repro index`)"
    made.add_argument("--images", type=positive, help=counted)
    made.add_argument("--config", choices=sorted(CONFIGS), help="model.config")
    made.add_argument("--devices", type=positive, help="device.workers times device.nodes")
    made.add_argument("--batch-size", type=positive, help="train.batch_size, of each device")
    made.add_argument("--resolution", type=positive, help="index.resolution")
    made.add_argument("--steps", type=positive, help="train.steps, in place of train.epochs")
    made.add_argument("--precision", choices=("float32", "float16", "bfloat16"), help="train.precision")
    made.add_argument(
        "--plot",
        type=cli.new_file(".html"),
        metavar="FILE",
        help="also write the timesteps as a page, such as plan.html",
    )
    cli.add_json(made)
    cli.run(made, lambda given: _run(given, made.error), arguments)


def _run(options: argparse.Namespace, refuse: Callable[[str], None]) -> int:
    given = {key: value for key, value in vars(options).items() if value is not None}
    json, plot = given.pop("json"), given.pop("plot", None)
    params = load()
    counts_index = "images" not in given
    images, captions, counted = _counted(refuse, params) if counts_index else (given.pop("images"), None, None)
    if given.get("resolution", params.index.resolution) != params.index.resolution:  # the buckets are other ones then
        counted = None
    place = disk.look(store.root(), Path("outs"))
    if "steps" in given:
        given["epochs"] = None
    run = replace(from_params(params, images, captions, counted=counted), **given)
    multiple = side_multiple(CONFIGS[run.config])
    if run.resolution % multiple:
        refuse(f"--resolution must be a multiple of {multiple}, found {run.resolution}")
    if run.weights_dtype == "float16" and run.precision != "float16":
        refuse(f"--precision {run.precision} contradicts train.weights_dtype float16 in params.yaml")
    differs = index_differs(run.resolution) if counts_index else []
    drawn = objective(params.diffusion, params.train, CONFIGS[run.config].vae.scaling_factor)
    if plot:
        timesteps.write_plot(drawn, plot)
    if json:
        page = {"plot": str(plot)} if plot else {}
        cli.print_json(as_json(run, place, differs) | {"timesteps": timesteps.parts(drawn)} | page)
    else:
        print(report(run, place, differs), "\n".join(timesteps.lines(drawn)), sep="\n\n")
        if plot:
            print(f"\n{plot}: the timesteps as curves; open it in a browser")
    return 0 if device.fits(run) and not disk.missing(run, place) else 1


def _counted(refuse: Callable[[str], None], params: Params) -> tuple[int, int, views.Counted]:
    """Pictures, captions and rows that outs/index lists, or an error."""
    for name in ("images.parquet", "captions.parquet"):
        if not (INDEX / name).exists():
            refuse(f"{INDEX / name} is not there: run `dvc repro index`, or say how many pictures with --images")
    images, captions = count_index(INDEX)
    if not images:
        refuse(f"{INDEX} lists no picture that is used: say how many with --images")
    return images, captions, views.count(INDEX, usual(params.cache_latents))


if __name__ == "__main__":
    main()

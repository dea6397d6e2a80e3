"""Say whether the run of params.yaml can start, a line for each thing that it needs: what was found, what was wanted,
and what to do. Nothing is written but into temporary folders outside the project.

ok: good; look: the run can start, but look at it; BAD: it cannot start; -: not looked at."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import pyarrow as pa

from pipeline import cli, npu, params, plan
from pipeline.cache.format.preparation import usual
from pipeline.doctor import cluster, disks, inputs, machine
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, SKIPPED, Finding, look
from pipeline.doctor.rehearsal import STEPS, rehearse
from pipeline.doubts import doubts
from pipeline.planning import views
from pipeline.planning.run import Run, count_index, from_params

_IMAGES = 1000  # taken where nothing is indexed yet


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("doctor", __doc__)
    made.add_argument("--no-training", action="store_true", help="leave out the two steps of training")
    cli.add_json(made)
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> int:
    findings = []
    for finding in _examine(given.no_training):
        findings.append(finding)
        if not given.json:
            print(finding, flush=True)
    bad = [finding.name for finding in findings if finding.state == BAD]
    if given.json:
        cli.print_json({"can_start": not bad, "findings": [asdict(finding) for finding in findings]})
    else:
        print(f"The run cannot start: {', '.join(dict.fromkeys(bad))}" if bad else "The run can start: `dvc repro`")
    return 1 if bad else 0


def _examine(no_training: bool) -> Iterator[Finding]:
    """Yield the findings, those first that others need."""
    for name, check in (("Python", machine.python), ("packages", machine.packages)):
        yield from look(name, check)
    settings = look("settings", _settings)
    yield from settings
    if any(finding.state == BAD for finding in settings):
        for name in ("device", "memory", "disk", "links", "weights", "tokenizer", "data", "training"):
            yield Finding(name, SKIPPED, "not looked at before params.yaml is right")
        return
    found = params.load()
    run = _planned(found)
    device = look("device", machine.device, found)
    yield from device
    if found.device.cluster is not None:
        yield from look("cluster", cluster.cluster, found)
    yield from look("memory", machine.memory, found, run)
    links = look("links", disks.links)
    yield from look("disk", disks.disk, run, all(finding.state == GOOD for finding in links))
    yield from links
    for name, check in (("weights", inputs.weights), ("tokenizer", inputs.tokenizer), ("data", inputs.data)):
        yield from look(name, check, found)
    good = all(finding.state != BAD for finding in device)
    if no_training or not good:
        reason = "--no-training" if no_training else "not tried before the device is right"
        yield Finding("training", SKIPPED, reason)
    else:
        print("two steps of training are compiled and run, for a minute or more ...", file=sys.stderr, flush=True)
        yield from look("training", _train, found)


def _settings() -> list[Finding]:
    found = params.load()
    said = [Finding("settings", DOUBTFUL, f"{key}: {doubt}") for key, doubt in doubts(found)]
    return said or [Finding("settings", GOOD, f"params.yaml: {found.model.config}, no contradictions")]


def _planned(found: params.Params) -> Run:
    """By the pictures that are indexed, or by some, on the device that the stages would find."""
    try:
        images, captions = count_index(plan.INDEX)
        rows = views.count(plan.INDEX, usual(found.cache_latents)) if images else None
    except (OSError, pa.ArrowException):
        images, captions, rows = _IMAGES, None, None
    run = from_params(found, max(images, 1), captions, rows)
    on_cpu = found.device.target == "CPU" or (found.device.target == "auto" and not npu.files())
    return replace(run, target="CPU") if on_cpu else run


def _train(found: params.Params) -> Finding:
    seconds = rehearse(found)
    what = "a very small SDXL" + (", not the full size" if found.model.config == "sdxl-base" else "")
    where = f"{found.device.workers} process{'es' * (found.device.workers > 1)}"
    parts = {
        "pictures in the loop": found.train.source == "pictures",
        "text encoders": found.train.text_encoders != "none",
        "other nodes": found.device.nodes > 1,
    }
    untried = ", ".join(name for name, is_asked in parts.items() if is_asked)
    said = f"{STEPS} steps of {what} in {where} took {seconds:.0f} s"
    return Finding("training", GOOD, f"{said}; not tried: {untried}" if untried else said)


if __name__ == "__main__":
    main()

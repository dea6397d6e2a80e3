"""Say what a file or a folder of weights is, as model.base or model.vae would take it, and where a file comes from.
Nothing is ever unpickled."""

import argparse
import contextlib
import io
import itertools
from pathlib import Path

from pipeline import cli
from pipeline.models.config import CONFIGS
from pipeline.stage import StageError, shown
from pipeline.weights import marks, provenance, safetensors, source
from pipeline.weights.files import has_parts
from pipeline.weights.names import PREFIX, part_of

_SHOWN = 100  # keys of a group
TRAINED, CONVERTED = Path("outs/train/weights"), Path("outs/convert")


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("weights", __doc__)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    command = cli.subcommand(commands, "inspect", "what it is; exit code 1 when it is neither an SDXL base nor a VAE")
    command.add_argument("path", type=Path, help="a safetensors file, a MindSpore .ckpt or a diffusers folder")
    cli.add_json(command)
    command.set_defaults(work=_inspect)
    shows = "what it says of where it comes from, and whether that is this workspace; exit code 1 when it is damaged"
    command = cli.subcommand(commands, "show", shows)
    command.add_argument("file", type=Path, help="a safetensors file, such as outs/merge/merged.safetensors")
    cli.add_json(command)
    command.set_defaults(work=_show)
    cli.run(made, lambda given: given.work(given), arguments)


def _show(given: argparse.Namespace) -> int:
    found = show(given.file)
    code = 1 if found["data"] == DAMAGED else 0
    if given.json:
        cli.print_json(found)
        return code
    print(f"{found['file']}: {found['data']}")
    for title, group in (("modelspec", "modelspec"), ("kohya's keys", "kohya"), ("this pipeline's", "own"),
                         ("others", "others")):  # fmt: skip
        if found[group]:
            print(f"  {title}:", *_listed(found[group]), sep="\n")
    print(f"  of this workspace: {found['workspace']}", *(f"    {line}" for line in found["differences"]), sep="\n")
    return code


def _listed(written: dict[str, str]) -> list[str]:
    lines = [f"    {shown(name)}: {shown(text)}" for name, text in itertools.islice(written.items(), _SHOWN)]
    return lines + ([f"    ... and {len(written) - _SHOWN:,} more"] if len(written) > _SHOWN else [])


DAMAGED = "the tensors are not those that its header names: it was changed or damaged"


def show(file: Path) -> dict:
    """What a safetensors file says of where it comes from, by group of keys; `data`, whether its tensors have the hash
    that it names; `workspace`, whether it is of the workspace that this runs in, with the `differences`."""
    if not file.is_file():  # a pipe would be waited for
        raise StageError(
            f"{file} is no file that is there; wanted a safetensors file, such as outs/merge/merged.safetensors"
        )
    safetensors.read(file)  # that it is whole
    written = safetensors.metadata(file)
    named = written.get(provenance.HASH)
    groups = {"modelspec": "modelspec.", "kohya": "ss_", "own": provenance.PREFIX}
    found = {
        group: {key.removeprefix(prefix): text for key, text in sorted(written.items()) if key.startswith(prefix)}
        for group, prefix in groups.items()
    }
    others = {key: text for key, text in sorted(written.items()) if not key.startswith(tuple(groups.values()))}
    data = "no hash of its tensors is in its header"
    if named is not None:
        data = "the tensors have the hash that its header names"
        data = data if f"0x{safetensors.data_sha256(file)}" == named.lower() else DAMAGED
    workspace, differences = _of_the_workspace(found["own"])
    return {"file": str(file), "data": data, **found, "others": others, "workspace": workspace,
            "differences": differences}  # fmt: skip


def _of_the_workspace(own: dict[str, str]) -> tuple[str, list[str]]:
    if not own:
        return "no: it was not made by this pipeline, or by an older version of it", []
    try:
        run = provenance.read(TRAINED / provenance.RUN, "train")
        origin = provenance.read(CONVERTED / provenance.SOURCES, "convert")
    except StageError as error:
        return f"not known: {error}", []
    # which of the trained weights it holds, and in what dtype, is no matter of where it comes from
    wanted = provenance.own(run, origin, own.get("weights", ""), own.get("dtype", ""))
    lines = provenance.differences(own, wanted)
    return ("no" if lines else "yes"), lines


def _inspect(given: argparse.Namespace) -> None:
    found = inspect(given.path)
    if given.json:
        return cli.print_json(found)
    print(f"{found['path']}: {found['form']}, {found['kind']} of model.config {found['config']}")
    for part in found["components"]:
        print(f"  {part['name']}: {part['tensors']:,} tensors, {part['parameters']:,} parameters, {part['dtypes']}")
    for mark, where in found["marks"].items():
        print(f"  marked {mark}: {where}")
    print(*(f"  {line}" for line in found["notes"]), sep="\n", end="\n" * bool(found["notes"]))
    print(*(f"  {name}: {text}" for name, text in found["metadata"].items()), sep="\n")


def inspect(path: Path) -> dict:
    """Its form, kind ("base model" | "VAE"), configuration, components, marks, metadata and what was noted while it was
    read. Raises StageError, which says what it is instead."""
    said, whole = io.StringIO(), has_parts(path)
    with contextlib.redirect_stdout(said):
        kind, config, tensors = _open(path)
    components = []
    for part in PREFIX:
        own = [tensor for name, tensor in tensors.items() if part_of(name) == part]
        if own:
            components.append({
                "name": part, "tensors": len(own), "parameters": sum(tensor.count for tensor in own),
                "dtypes": ", ".join(sorted({tensor.dtype for tensor in own})),
            })  # fmt: skip
    plain = path.is_file() and safetensors.is_one(path)
    return {
        "path": str(path),
        "form": "diffusers folder" if whole else "safetensors" if plain or path.is_dir() else "MindSpore .ckpt",
        "kind": kind,
        "config": config,
        "components": components,
        "marks": marks.read(path)[0] if kind == "base model" else {},
        "metadata": {name: shown(text) for name, text in sorted((safetensors.metadata(path) if plain else {}).items())},
        "notes": [line.removeprefix(f"{path}: ") for line in said.getvalue().splitlines()],
    }


def _open(path: Path) -> tuple[str, str, dict]:
    faults = []
    for kind, read in (("base model", lambda config: source.open_weights(path, path, config)), ("VAE", _vae(path))):
        for name, config in CONFIGS.items():
            try:
                return kind, name, read(config)
            except StageError as error:
                faults.append(error)
    raise faults[0]  # as a base for sdxl-base


def _vae(path: Path):
    return lambda config: source.open_vae(path, config)


if __name__ == "__main__":
    main()

"""Say what a file or a folder of weights is, as model.base or model.vae would take it. Only headers are read, and
nothing is ever unpickled."""

import argparse
import contextlib
import io
from pathlib import Path

from pipeline import cli
from pipeline.models.config import CONFIGS
from pipeline.stage import StageError, shown
from pipeline.weights import marks, safetensors, source
from pipeline.weights.files import has_parts
from pipeline.weights.names import PREFIX, part_of


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("weights", __doc__)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    command = cli.subcommand(commands, "inspect", "what it is; exit code 1 when it is neither an SDXL base nor a VAE")
    command.add_argument("path", type=Path, help="a safetensors file, a MindSpore .ckpt or a diffusers folder")
    cli.add_json(command)
    cli.run(made, _inspect, arguments)


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

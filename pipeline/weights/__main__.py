"""Say what a file or a folder of weights is, as model.base or model.vae would take it, and where a file comes from; make
a LoRA of a fine-tune. Nothing is ever unpickled."""

import argparse
import contextlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import cli, params
from pipeline.models.config import CONFIGS
from pipeline.stage import StageError, shown
from pipeline.weights import ckpt, marks, provenance, recognise, safetensors, source
from pipeline.weights.adapters import extract, file, kinds
from pipeline.weights.adapters.apply import base_unet
from pipeline.weights.files import has_parts, is_ckpt, read_file
from pipeline.weights.names import PREFIX, canonical, part_of
from pipeline.weights.starts import TEXTS
from pipeline.weights.tensor import Tensor

_SHOWN = 100  # keys of a group
_NAMES = {"unet": "UNet", **TEXTS, "vae": "VAE"}
TRAINED, CONVERTED = Path("outs/train/weights"), Path("outs/convert")
# Stage -> the facts that it writes beside its weights, and what of them is among this pipeline's keys.
_FACTS = {
    "train": (TRAINED / provenance.RUN, provenance.of_training),
    "convert": (CONVERTED / provenance.SOURCES, provenance.of_base),
}


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("weights", __doc__)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    command = cli.subcommand(commands, "inspect", "what it is; exit code 1 when it is no part of SDXL")
    command.add_argument("path", type=Path, help="a safetensors file, a MindSpore .ckpt or a diffusers folder")
    cli.add_json(command)
    command.set_defaults(work=_inspect)
    shows = "what it says of where it comes from, and whether that is this workspace; exit code 1 when it is damaged"
    command = cli.subcommand(commands, "show", shows)
    command.add_argument(
        "file", type=Path, help="a safetensors file, such as outs/merge/merged.safetensors, or a MindSpore .ckpt"
    )
    cli.add_json(command)
    command.set_defaults(work=_show)
    makes = "write the LoRA nearest to the difference of a fine-tune and its base, and say how near each rank comes"
    command = cli.subcommand(commands, "extract", makes)
    command.add_argument("--rank", type=cli.count(1, 1024), required=True, help="of the LoRA: 16 to 128 are usual")
    command.add_argument("--base", type=Path, default=CONVERTED / "unet.ckpt", help="default: %(default)s")
    command.add_argument("--tuned", type=Path, default=TRAINED / "unet.ckpt", help="default: %(default)s")
    command.add_argument("--out", type=cli.new_file(".safetensors"), help="default: lora-rank-<RANK>.safetensors")
    command.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    command.add_argument(
        "--targets", nargs="+", default=extract.TARGETS, metavar="PATTERN",
        help="names of weights, as train.adapter_targets has them; default: the transformers' linear layers",
    )  # fmt: skip
    command.set_defaults(work=_extract)
    cli.run(made, lambda given: given.work(given), arguments)


def _extract(given: argparse.Namespace) -> None:
    for path in (given.base, given.tuned):
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise StageError(
                f"{path} {found}; wanted a UNet's .ckpt, or SDXL in one file: that of a training of the whole UNet "
                "(train.adapter none) as --tuned, and what it began with as --base"
            )
    out = given.out or Path(f"lora-rank-{given.rank}.safetensors")
    for path in (given.base, given.tuned):
        if out.exists() and out.samefile(path):
            raise StageError(f"--out {out} is {path}, which would be lost; wanted another name")
    if out.exists():
        raise StageError(f"{out} exists and is left as it is; remove it, or name another by --out")
    for path in (given.base, given.tuned):
        if recognise.is_adapter(read_file(path)):
            raise StageError(
                f"{path} is an adapter already; wanted the whole UNet before (--base) and after (--tuned), such as "
                "outs/merge/merged.safetensors of the run that made it"
            )
    config = _config_of(given.base)
    metadata = provenance.extracted_metadata(config, given.rank, given.base, given.tuned)
    arguments = given.rank, given.targets, given.dtype, out, metadata
    found = extract.extract(given.base, given.tuned, CONFIGS[config], *arguments)
    shapes = {name: tensor.shape for name, tensor in safetensors.read(out).items() if kinds.ALPHA not in name}
    per_rank = sum(math.prod(shape) for shape in shapes.values()) // given.rank
    print(
        f"{out}: {len(shapes) // 2} layers, in which {found.adapted / found.whole:.1%} of the squared difference lies"
    )
    further = [_NAMES[part] for part in _held(given.tuned) if part in TEXTS]
    if further:
        print(f"of the UNet alone: what {' and '.join(further)} of {given.tuned} may have learned is not in it")
    size = 2 if given.dtype == "float16" else 4
    print(*extract.table(found, {rank: rank * per_rank for rank in found.left}, size), sep="\n")


def _config_of(path: Path) -> str:
    """The configuration of a file's UNet. Raises StageError."""
    faults = []
    for name, config in CONFIGS.items():
        try:
            base_unet(path, config)
            return name
        except StageError as error:
            faults.append(error)
    raise faults[0]


def _show(given: argparse.Namespace) -> int:
    found = show(given.file)
    code = 1 if found["data"] == provenance.DAMAGED else 0
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


def show(file: Path) -> dict:
    """What a file says of where it comes from, by group of keys; `data`, whether its tensors have the hash that it names;
    `workspace`, whether it is of the workspace that this runs in, with the `differences`.

    A MindSpore .ckpt has no place for such keys: what stands for it is what its stage wrote beside it, and for the merged
    one the .safetensors of its name."""
    if not file.is_file():  # a pipe would be waited for
        raise StageError(f"{file} is no file that is there; wanted one such as outs/merge/merged.safetensors")
    data, written, stages = _of_ckpt(file) if is_ckpt(file) else _of_safetensors(file)
    groups = {"modelspec": "modelspec.", "kohya": "ss_", "own": provenance.PREFIX}
    found = {
        group: {key.removeprefix(prefix): text for key, text in sorted(written.items()) if key.startswith(prefix)}
        for group, prefix in groups.items()
    }
    others = {key: text for key, text in sorted(written.items()) if not key.startswith(tuple(groups.values()))}
    if found["own"] or not is_ckpt(file):
        workspace, differences = _of_the_workspace(found["own"], stages)
    else:
        workspace, differences = "not known: nothing beside it says where it comes from", []
    return {"file": str(file), "data": data, **found, "others": others, "workspace": workspace,
            "differences": differences}  # fmt: skip


def _of_safetensors(file: Path) -> tuple[str, dict[str, str], Sequence[str]]:
    """What is said of its tensors, its metadata, and the stages whose facts are in them."""
    if not safetensors.read(file):  # which also says whether it is whole
        return "it holds no tensors", safetensors.metadata(file), tuple(_FACTS)
    data = {
        True: "the tensors have the hash that its header names",
        False: provenance.DAMAGED,
        None: "no hash of its tensors is in its header",
    }[provenance.intact(file)]
    return data, safetensors.metadata(file), tuple(_FACTS)


def _of_ckpt(file: Path) -> tuple[str, dict[str, str], Sequence[str]]:
    """The same of a MindSpore .ckpt, whose stage has written the facts beside it."""
    tensors = ckpt.read(file)
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
    count = sum(tensor.count for tensor in tensors.values())
    data = f"a MindSpore .ckpt, which has no metadata: {len(tensors):,} tensors, {count:,} parameters, {shown(dtypes)}"
    for stage, (path, facts) in _FACTS.items():
        beside = file.with_name(path.name)
        if beside.is_file():
            found = facts(provenance.read(beside, stage))
            return f"{data}; {beside} says:", {provenance.PREFIX + key: text for key, text in found.items()}, (stage,)
    other = file.with_suffix(".safetensors")
    if other.is_file():
        return f"{data}; {other} says:", safetensors.metadata(other), tuple(_FACTS)
    return data, {}, ()


def _of_the_workspace(own: dict[str, str], stages: Sequence[str]) -> tuple[str, list[str]]:
    if not own:
        return "no: it does not say that this pipeline made it", []
    wanted: dict[str, str] = {}
    if "tuned" in own:  # what extract writes
        beside = {"base": CONVERTED / "unet.ckpt", "tuned": TRAINED / "unet.ckpt"}
        wanted = {key: provenance.sha256(path) if path.is_file() else "none" for key, path in beside.items()}
        stages = ()
    try:
        for stage in stages:
            path, facts = _FACTS[stage]
            wanted |= facts(provenance.read(path, stage))
    except StageError as error:
        return f"not known: {error}", []
    # which of the trained weights it holds, and in what dtype, is no matter of where it comes from
    lines = provenance.differences({key: text for key, text in own.items() if key not in ("weights", "dtype")}, wanted)
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
    for line in (*found["notes"], *(f"{name}: {text}" for name, text in found["metadata"].items())):
        print(f"  {line}")


def inspect(path: Path) -> dict:
    """Its form, kind ("base model", "VAE", "adapter", or the components that a training's file holds: "UNet, CLIP-L"), configuration, components, marks, metadata and what was noted while it was
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
        "marks": {} if kind in ("VAE", "adapter") else marks.read(path)[0],
        "metadata": {name: shown(text) for name, text in sorted((safetensors.metadata(path) if plain else {}).items())},
        "notes": [line.removeprefix(f"{path}: ") for line in said.getvalue().splitlines()],
    }


def _open(path: Path) -> tuple[str, str, dict]:
    faults, own = {}, _own_config()
    for kind, read in (("base model", lambda config: source.open_weights(path, path, config)), ("VAE", _vae(path))):
        for name, config in CONFIGS.items():
            try:
                return kind, name, read(config)
            except StageError as error:
                faults.setdefault(name, error)
    held = _held(path)
    for name, config in CONFIGS.items():
        with contextlib.suppress(StageError):
            found = [tensor for part in held for tensor in source.open_part(path, part, config).items()]
            if found and len(held) < len(PREFIX):
                return ", ".join(_NAMES[part] for part in held), name, dict(found)
    if path.is_file():
        try:
            name, adapters = file.read_any(path)
        except StageError:
            if recognise.is_adapter(read_file(path)):
                file.read(path, CONFIGS[own])
        else:
            print(*_counted(adapters), sep="\n")
            return "adapter", name, _parts_of(adapters)
    raise faults[own]


def _own_config() -> str:
    """The model.config that this workspace has, for which a file is called wrong that fits none."""
    try:
        return params.load().model.config
    except params.ParamsError:
        return next(iter(CONFIGS))


def _counted(adapters: Mapping[str, Sequence[file.Adapter]]) -> Iterator[str]:
    """A line for each kind, rank and alpha of layers."""
    found = Counter(
        (kinds.kind_of(one.parts), kinds.rank_of(one.parts), one.alpha)
        for several in adapters.values()
        for one in several
    )
    for (kind, rank, alpha), count in found.most_common(_SHOWN):
        said = f" of rank {rank}, alpha {rank if alpha is None else alpha:g}" if rank else " of whole matrices"
        yield f"{kind}{said}: {count:,} layer{'s' * (count > 1)}"


def _parts_of(adapters: Mapping[str, Sequence[file.Adapter]]) -> dict[str, Tensor]:
    return {
        f"{weight}.{number}.{part}": tensor
        for weight, several in adapters.items()
        for number, one in enumerate(several)
        for part, tensor in one.parts.items()
    }


def _held(path: Path) -> list[str]:
    """The components of which a single file has any tensor."""
    if path.is_dir():
        return []
    found = {part_of(canonical(name)) for name in read_file(path)}
    return [part for part in PREFIX if part in found]


def _vae(path: Path):
    return lambda config: source.open_vae(path, config)


if __name__ == "__main__":
    main()

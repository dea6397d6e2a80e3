"""Write params.yaml for a model and a number of NPUs, with what is your own kept from the present one.

presets/tiny.yaml is the whole, commented file of the demo; the other files in presets/ hold the keys that differ from
it, with their reasons. Comments are always the preset's."""

import argparse
import io
import re
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from pipeline import cli, store
from pipeline.doubts import doubts
from pipeline.params import ParamsError, check, parse
from pipeline.recorded import PROJECT
from pipeline.stage import StageError

FOLDER = PROJECT / "presets"
WHOLE = "tiny"
# Preset -> the files that are laid over the whole one, in turn.
PRESETS = {
    "tiny": (),
    "sdxl-1x910b": ("sdxl", "sdxl-1x910b"),
    "sdxl-lora-1x910b": ("sdxl", "sdxl-lora-1x910b"),
    "sdxl-8x910b": ("sdxl", "sdxl-8x910b"),
    "sdxl-16x910b": ("sdxl", "sdxl-8x910b", "sdxl-16x910b"),
}
# What a user sets for their data, base model and computers, as sections or single keys: a preset keeps it, unless it
# still is what some preset has.
OWN = (
    "data",
    "model.base",
    "model.vae",
    "model.tokenizer",
    "model.lora_folder",
    "model.loras",
    "index.caption_lines",
    "index.alpha_mask",
    "cache_text.emphasis",
    "diffusion",  # what the base model was trained with
    "device.cluster",
    "device.node_rank",
    "device.master",
    "train.previews",
    "sample.prompts",
)
_OF_THE_BASE = ("model.base", "model.vae", "model.tokenizer", "model.lora_folder", "model.loras", "diffusion")
_WIDTH = 90  # letters of a value in the list of changes

Values = dict[str, object]  # "section.key" -> value


@dataclass(frozen=True)
class Written:
    """A params.yaml that a preset makes of another one."""

    text: str
    kept: Values
    changed: dict[str, tuple[object, object]]  # key -> (its value before, its value now)
    added: Values  # keys that the other one lacked
    dropped: Values  # keys of the other one that are none
    doubtful: list[tuple[str, str]]  # what of the user's own few runs want with this preset, key and why


def write(name: str, present: str | None = None) -> Written:
    """The params.yaml of preset `name`, with what is the user's own from the text `present` of another (None: there is
    none; one of an older version may lack keys or have others). Raises ParamsError when that is no YAML, or when what
    is kept of it contradicts the preset."""
    before = _values(parse(present, "params.yaml")) if present is not None else {}
    wanted = values(name)
    kept = _own(before, wanted)
    text = _text(name, kept)
    now = _values(parse(text, f"preset {name}"))
    if now != wanted | kept:
        odd = next(key for key in now.keys() | kept.keys() if now.get(key) != (wanted | kept).get(key))
        raise ParamsError(f"params.yaml: {odd} cannot be put into the preset: {before.get(odd)!r}; write it on a line")
    found = check(parse(text, f"preset {name}"), f"preset {name} with what is yours in params.yaml")
    changed = {key: (before[key], value) for key, value in now.items() if key in before and before[key] != value}
    added = {key: value for key, value in now.items() if before and key not in before}
    dropped = {key: value for key, value in before.items() if key not in now}
    kept = {key: value for key, value in kept.items() if wanted[key] != value}
    return Written(text, kept, changed, added, dropped, list(doubts(found)))


def values(name: str) -> Values:
    """The keys of a preset as it stands, without anything of a user's."""
    found: Values = {}
    for file in (WHOLE, *PRESETS[name]):
        found |= _values(parse(_read(file), f"presets/{file}.yaml"))
    return found


def _own(before: Values, wanted: Values) -> Values:
    """What of `before` is the user's own: keys of OWN whose value no preset has."""
    presets = [values(name) for name in PRESETS]
    to_tiny = wanted["model.config"] == "tiny" != before.get("model.config")  # whose weights are in the repository
    kept = {}
    for key, value in before.items():
        mine = key in wanted and _listed(key, OWN) and not (to_tiny and _listed(key, _OF_THE_BASE))
        if mine and all(preset[key] != value for preset in presets):
            kept[key] = value
    if kept.get("diffusion.prediction") == "flow":  # which has no signal-to-noise ratio to weight by
        kept["train.snr_gamma"] = None
    if "model.base" in kept and "model.vae" not in kept and before.get("model.vae") != wanted["model.vae"]:
        kept["model.vae"] = kept["model.base"]  # and not that of another model
    return kept


def _listed(key: str, names: tuple[str, ...]) -> bool:
    return key in names or key.partition(".")[0] in names


def _read(file: str) -> str:
    return (FOLDER / f"{file}.yaml").read_text(encoding="utf-8")


def _values(tree: object) -> Values:
    sections = tree.items() if isinstance(tree, dict) else ()
    return {f"{name}.{key}": value for name, keys in sections if isinstance(keys, dict) for key, value in keys.items()}


# Text: an entry is a key's line and what is indented below it


def _text(name: str, kept: Values) -> str:
    whole = _read(WHOLE)
    lines, found = whole.split("\n"), _entries(whole)
    entries = {key: lines[begin:end] for key, (begin, end) in found.items()}
    for file in PRESETS[name]:
        text = _read(file)
        entries |= {key: text.split("\n")[begin:end] for key, (begin, end) in _entries(text).items()}
    for key, value in kept.items():
        entries[key] = _entry(key.partition(".")[2], value, _comment(entries[key]))
    for key, (begin, end) in reversed(found.items()):
        lines[begin:end] = entries[key]
    return "\n".join(lines)


def _entries(text: str) -> dict[str, tuple[int, int]]:
    """Key -> its entry's first line and one past its last, in the text's order."""
    found, section, key = {}, "", ""
    for number, line in enumerate(text.split("\n")):
        if match := re.match(r"(\w+):$", line):
            section, key = match[1], ""
        elif match := re.match(r"  (\w+):", line):
            key = f"{section}.{match[1]}"
            found[key] = number, number + 1
        elif key and re.match(r"    +\S", line):
            found[key] = found[key][0], number + 1
    return found


def _comment(entry: list[str]) -> str:
    return entry[0].partition(" # ")[2]


def _entry(key: str, value: object, comment: str) -> list[str]:
    yaml, out = YAML(), io.StringIO()
    yaml.width, yaml.allow_unicode = 10**6, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump({key: value}, out)
    lines = [f"  {line}" for line in out.getvalue().rstrip("\n").split("\n")]
    return [f"{lines[0]} # {comment}" if comment else lines[0], *lines[1:]]


# The command


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("preset", __doc__)
    made.add_argument("name", choices=PRESETS, help="the preset to write into params.yaml")
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> int:
    path = Path("params.yaml")
    if not (Path("dvc.yaml").exists() or path.exists()):
        raise StageError("there is no dvc.yaml here; presets are written in the project's folder")
    written = write(given.name, path.read_text(encoding="utf-8") if path.exists() else None)
    with store.atomic(path) as temporary:
        temporary.write_text(written.text, encoding="utf-8")
    print(f"params.yaml is the preset {given.name} now.")
    for title, keys in (("Kept, as your own", written.kept), ("New keys", written.added),
                        ("Dropped, for they are no keys", written.dropped)):  # fmt: skip
        _print(title, [(key, _shown(value)) for key, value in keys.items()])
    _print("Changed", [(key, f"{_shown(old)} -> {_shown(new)}") for key, (old, new) in written.changed.items()])
    _print("Doubtful", written.doubtful)
    print("Next: `make doctor`, which says what is still missing; `python -m pipeline plan --images 1000`, what fits")
    return 0


def _print(title: str, lines: list[tuple[str, str]]) -> None:
    if lines:
        print(f"{title}:", *(f"  {key}: {line}" for key, line in lines), sep="\n")


def _shown(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."


if __name__ == "__main__":
    main()

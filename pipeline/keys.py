"""Print the page of all keys of params.yaml, docs/keys.md, in Markdown.

What a key may be is the schema's (pipeline/params.py), what it does is params.yaml's own words, and the stages are those
that dvc.yaml lets read it. With names of keys or sections, those alone."""

import argparse
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from pipeline import cli, params, preset
from pipeline.recorded import PROJECT
from pipeline.stage import StageError

_COLUMNS = ("key", "may be", "tiny", "sdxl-1x910b", "what it is", "a change re-runs")
_PRESETS = _COLUMNS[2:4]
_BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "up to {}", "lt": "below {}"}
_LIMITS = (*_BOUNDS, "min_length", "max_length")
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true, false", NoneType: "null"}

HEAD = """# All keys of params.yaml

Made by `python -m pipeline keys`; a test holds it to the schema. *A change re-runs* names the stages that read the key, and what
follows them runs where its inputs changed; a key without one says how fast a stage works, or where. What keys demand of each other is
said when they are set so, with both values.
"""


def main(arguments: list[str] | None = None) -> None:
    made = cli.parser("keys", __doc__)
    made.add_argument("names", nargs="*", metavar="KEY", help="train.learning_rate, or a section, such as train")
    cli.add_json(made)
    cli.run(made, _run, arguments)


def _run(given: argparse.Namespace) -> None:
    found = rows()
    if unknown := [name for name in given.names if not any(_within(key, name) for key in found)]:
        raise StageError(f"{', '.join(unknown)}: no such key or section; the sections are {', '.join(_sections())}")
    found = {key: row for key, row in found.items() if not given.names or any(_within(key, n) for n in given.names)}
    if given.json:
        return cli.print_json(found)
    print(page(found) if not given.names else "\n".join(_entries(found)))


def rows() -> dict[str, dict[str, str]]:
    """Key -> what stands in the columns of the page, by their names."""
    words, stages = _words(), _stages()
    values = {name: params.parse(preset.write(name, None).text, name) for name in _PRESETS}
    found = {}
    for section, model in _sections().items():
        for name, field in model.model_fields.items():
            key = f"{section}.{name}"
            found[key] = {
                "may be": _kind(field.annotation, tuple(field.metadata)),
                **{one: _yaml(tree[section][name]) for one, tree in values.items()},
                "what it is": words.get(key, ""),
                "a change re-runs": ", ".join(stages.get(key, stages.get(section, []))),
            }
    return found


def page(found: dict[str, dict[str, str]]) -> str:
    lines = [HEAD]
    for section in _sections():
        lines += [f"## {section}", "", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
        for key, row in found.items():
            if _within(key, section):
                cells = [f"`{key.split('.')[1]}`", row["may be"], *(f"`{row[name]}`" for name in _PRESETS)]
                cells += [row["what it is"], row["a change re-runs"]]
                lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _entries(found: dict[str, dict[str, str]]) -> Iterator[str]:
    for key, row in found.items():
        yield key
        yield from (f"  {name}: {text}" for name, text in row.items() if text)


def _sections() -> dict[str, type[params.Section]]:
    return {name: field.annotation for name, field in params.Params.model_fields.items()}


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _words() -> dict[str, str]:
    """Key -> the comment behind it in params.yaml, with the lines of comment below it."""
    found, section, key = {}, "", ""
    for line in (PROJECT / "presets/tiny.yaml").read_text(encoding="utf-8").splitlines():
        comment = re.search(r"(?:^|\s)# (.*)$", line)
        if top := re.match(r"(\w+):$", line):
            section = top[1]
        elif (inner := re.match(r"  (\w+):", line)) and section:
            key = f"{section}.{inner[1]}"
            found[key] = comment[1] if comment else ""
        elif re.match(r" {4,}# ", line) and key:
            found[key] = f"{found[key]} {comment[1]}".strip()
    return found


def _stages() -> dict[str, list[str]]:
    """Key or section -> the stages of dvc.yaml that list it."""
    tree = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
    found: dict[str, list[str]] = {}
    for name, stage in tree.items():
        for key in stage.get("params", []):
            found.setdefault(key, []).append(name)
    for key in list(found):  # a stage that lists the section has all of its keys
        section, _, name = key.partition(".")
        if name:
            found[key] = [stage for stage in tree if stage in found[key] or stage in found.get(section, [])]
    return found


def _kind(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:
    """A field's annotation in words. `bounds`: pydantic's metadata of it (JSON schemas lose those behind a validator)."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        further = [one for field in arguments[1:] for one in (field.metadata if isinstance(field, FieldInfo) else [])]
        return _kind(arguments[0], (*further, *bounds))
    if kind in (Union, UnionType):
        return ", ".join(map(_kind, arguments))
    if kind is Literal:
        return ", ".join(map(str, arguments))
    told = {name: getattr(one, name) for one in bounds for name in _LIMITS if hasattr(one, name)}
    if kind is list:
        least, most = told.get("min_length", 0), told.get("max_length")
        count = f" of {least}" if least and least == most else f" of {least} or more" if least else ""
        return f"list{count}: {_kind(arguments[0])}"
    if issubclass(annotation, params.Section):
        return "{" + ", ".join(annotation.model_fields) + "}"
    said = [words.format(_number(told[name])) for name, words in _BOUNDS.items() if name in told]
    return " ".join([_NAMES[annotation], ", ".join(said)]).strip()


def _number(value: float) -> str:
    exponent = round(value).bit_length() - 1
    return f"2^{exponent}" if value > 1e9 and value == 2**exponent else f"{value:,.10g}"


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(_yaml, value))
        return f"[{shown}]" if len(shown) < 40 else f"[{len(value)} of them]"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()

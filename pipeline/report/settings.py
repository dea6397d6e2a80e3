"""params.yaml against the defaults that it was made from."""

from dataclasses import dataclass

from pipeline import params, recorded
from pipeline.report.revision import Revision
from pipeline.stage import StageError

FILE = "params.yaml"


@dataclass(frozen=True)
class Defaults:
    name: str  # as the page calls them
    values: dict[str, object]


def read(revision: Revision) -> dict[str, object]:
    """Key -> value. Raises ParamsError; StageError when there is no params.yaml."""
    text = revision.read(FILE)
    if text is None:
        raise StageError(f"{FILE} is not there; the report is made in the project's folder")
    return flat(text, f"{FILE} of {revision.name}")


def flat(text: bytes, name: str) -> dict[str, object]:
    """Key -> value of a YAML text in the form of params.yaml. Raises ParamsError, which calls it by `name`."""
    sections = params.sections(text, name)
    return {key: value for section, inner in sections.items() for key, value in recorded.leaves(str(section), inner)}


def rows(runs: list[dict[str, object]], defaults: dict[str, object]) -> list[tuple[str, object, list[object], bool]]:
    """(key, its default, its value in each run, whether any of these differs) in the file's order. A key that is not
    there is the text "absent"."""
    keys = dict.fromkeys([*defaults, *(key for run in runs for key in run)])
    found = []
    for key in keys:
        default, values = defaults.get(key, "absent"), [run.get(key, "absent") for run in runs]
        found.append((key, default, values, any(value != default for value in values)))
    return found

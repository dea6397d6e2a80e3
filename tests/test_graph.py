"""dvc.yaml against the code: what a stage imports and reads is what DVC watches for it."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from pipeline.params import Params
from pipeline.training import key

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Plumbing that shapes no out. Were it a dependency, every edit of the schema would re-run all stages.
_FOLDERS = ("pipeline/contradictions", "pipeline/workers")
PLUMBING = {
    f"pipeline/{name}.py"
    for name in (
        "__init__",
        "params",
        "doubts",
        "hardware",
        "hub",
        "locks",
        "npu",
        "progress",
        "recorded",
        "stage",
        "store",
        "times",
        "unknown_keys",
        "without_effect",
    )  # fmt: skip
} | {path.relative_to(ROOT).as_posix() for folder in _FOLDERS for path in (ROOT / folder).glob("*.py")}
# Code -> what it reads beside itself.
READS = {"pipeline/report/html.py": "pipeline/report/templates"}
# Keys that only say how, where or how fast a stage works. Of the device's, the number of processes counts: with the
# batch size of each it makes the batch of a training step.
HOW = {"index.workers", "cache_latents.workers"} | {
    f"device.{key}" for key in Params.model_fields["device"].annotation.model_fields if key not in ("workers", "nodes")
}

# What train reads where it encodes itself, and outs/latents and outs/text stand for: the contents of pictures,
# captions and vocabulary, wherever they lie, and how they are encoded.
IN_OUTS = {
    "data.images",
    "data.image_column",
    "model.tokenizer",
    "cache_latents.batch_size",
    "cache_text.batch_size",
}
# What of params is no key -> the keys that it follows from.
FOLLOWS = {"train.reads_captions": {"train.source", "train.text_encoders"}}


def module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def imports(file: Path) -> set[Path]:
    """Project files that `file` imports, with the __init__ of each package on the way."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    names = {n for n in names if n.split(".")[0] in ("pipeline", "stages")}
    names |= {n.rsplit(".", k)[0] for n in names for k in range(1, n.count(".") + 1)}
    return {found for n in names if (found := module_file(n))}


def closure(file: Path) -> set[str]:
    seen, todo = set(), [file]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            if current.relative_to(ROOT).as_posix() not in PLUMBING:
                todo += imports(current)
    return {p.relative_to(ROOT).as_posix() for p in seen}


def code_deps(stage: str) -> list[str]:
    return [d for d in STAGES[stage]["deps"] if d.startswith(("pipeline", "stages/"))]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports(stage):
    needed = {f for f in closure(ROOT / f"stages/{stage}.py") - PLUMBING if not f.endswith("__init__.py")}
    needed |= {READS[f] for f in needed & READS.keys()}
    deps = code_deps(stage)
    unwatched = {f for f in needed if not any(f == d or f.startswith(d + "/") for d in deps)}
    assert not unwatched
    idle = {d for d in deps if not any(f == d or f.startswith(d + "/") for f in needed)}
    assert not idle


@pytest.mark.parametrize("text_encoders", ["none", "both"])
def test_the_key_of_a_training_knows_the_code_that_train_depends_on(monkeypatch, text_encoders):
    """Else DVC runs train after an edit, and the store gives it the outs of the code before. What pipeline/data made is
    in the caches, where no caption is read while training."""
    train = Params.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())).train
    train = train.model_copy(update={"text_encoders": text_encoders})
    deps = [ROOT / dep for dep in code_deps("train") if dep.startswith("pipeline/")]
    files = {file for dep in deps for file in (dep.rglob("*.py") if dep.is_dir() else [dep])}
    read, read_bytes = set(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.add(path), read_bytes(path))[1])
    key._prepared_with(train)
    of_data = {file for file in files if file.is_relative_to(ROOT / "pipeline/data")}
    assert of_data and files - read == (of_data if text_encoders == "none" else set())


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage):
    stages = {file for file in closure(ROOT / f"stages/{stage}.py") if file.startswith("stages/")}
    assert stages <= {f"stages/{stage}.py", "stages/__init__.py"}


LAYERS = ("data", "cache", "training", "planning")  # each may import those before it


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above_it(layer):
    above = {f"pipeline/{name}/" for name in LAYERS[LAYERS.index(layer) + 1 :]}
    for file in (ROOT / "pipeline" / layer).rglob("*.py"):
        found = {path.relative_to(ROOT).as_posix() for path in imports(file)}
        assert not [path for path in found if path.startswith(tuple(above))], file


@pytest.mark.parametrize("stage", ["index", "convert", "merge"])
def test_stages_without_tensors_import_no_mindspore(stage):
    for file in closure(ROOT / f"stages/{stage}.py"):
        text = (ROOT / file).read_text()
        assert not re.search(r"^\s*(import|from) mindspore", text, re.M), file
        assert file != "pipeline/device.py"


def keys(section: str) -> set[str]:
    return {f"{section}.{key}" for key in Params.model_fields[section].annotation.model_fields}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_given_the_params_that_it_reads(stage):
    text, read = (ROOT / f"stages/{stage}.py").read_text(), set()
    # Drawing is left to workers, and the index is for looking as well.
    further = {"sample": "pipeline/sampling/paint.py", "index": "pipeline/data/by_params.py"}
    text += (ROOT / further[stage]).read_text() if stage in further else ""
    for section, key in re.findall(r"\bparams\.(\w+)(?:\.(\w+))?", text):
        if f"{section}.{key}" in FOLLOWS:
            read |= FOLLOWS[f"{section}.{key}"]
        elif section in Params.model_fields:
            read |= {f"{section}.{key}"} if f"{section}.{key}" in keys(section) else keys(section)
    listed = set()
    for key in STAGES[stage]["params"]:
        listed |= {key} if "." in key else keys(key)
    # any number of them gives the same bytes
    ranks = set() if stage == "train" else {"device.workers", "device.nodes"}
    in_outs = IN_OUTS if stage == "train" else set()
    assert listed - HOW == read - HOW - ranks - in_outs


def test_every_key_shapes_some_stage():
    listed = {k for stage in STAGES.values() for key in stage["params"] for k in ({key} if "." in key else keys(key))}
    assert {k for section in Params.model_fields for k in keys(section)} == listed | HOW

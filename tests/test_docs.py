"""README and docs/: links lead somewhere, commands are understood as they are written, keys and messages exist.

tests/test_docs_run.py runs the commands."""

import argparse
import ast
import gzip
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline import cli, params, preset
from pipeline.__main__ import TOOLS
from pipeline.data import sets_file
from tests.project import ROOT
from tests.reference.make_raycluster_schema import SCHEMA

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.S | re.M)
PROGRAMS = {"git", "dvc", "source", "export", "hf", "make", "python", "ray"}


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


# Links


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """As GitHub and mkdocs both write them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), f"{page.name}: {target}"
        # the site holds docs/ alone
        assert page.parent == ROOT or file.is_relative_to(ROOT / "docs"), f"{page.name}: {target} is not in docs/"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_no_page_holds_both_sides_of_a_merge():
    assert [page.name for page in PAGES if re.search(r"^(<<<<<<<|>>>>>>>) ", page.read_text(), re.M)] == []


def test_each_page_is_listed():
    pages = {page.name for page in PAGES[1:]}
    tree = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w-]+\.md", str(tree["nav"]))
    assert sorted(listed) == sorted(pages) and tree["strict"]
    linked = set(re.findall(r"\(([\w-]+\.md)\)", (ROOT / "docs/index.md").read_text()))
    assert linked == pages - {"index.md"}


def test_files_that_are_named_are_there():
    """Those of the repository: what stages write is not there yet."""
    for page in PAGES:
        for name in re.findall(r"`((?:pipeline|stages|tests|benchmarks|presets|docs)/[\w./-]*)`", prose(page)):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_pictures_are_small():
    for path in (ROOT / "docs/images").iterdir():
        assert 10_000 < path.stat().st_size < 200_000, path


# Commands


def commands(page: Path) -> list[str]:
    """The lines of the blocks of commands, without comments; a line that ends in a backslash goes on."""
    found = []
    for indent, language, text in FENCE.findall(page.read_text()):
        if language in ("", "bash", "sh", "shell") and "│" not in text:
            for line in re.sub(r"\\\n\s*", " ", text).splitlines():
                found.append(re.sub(r"\s+#.*", "", line.strip()))
    return [line for line in found if line and not line.startswith("#")]


def inline(page: Path) -> list[str]:
    """Commands within sentences and tables, where they are whole."""
    pattern = r"`((?:python -m (?:pipeline|stages|benchmarks|tests)|make |dvc )[^`…]*)`"
    return [" ".join(text.split()) for text in re.findall(pattern, prose(page))]


ALL = sorted({(str(page.relative_to(ROOT)), line) for page in PAGES for line in [*commands(page), *inline(page)]})


def test_there_are_commands_to_try():
    assert len(ALL) > 60
    assert {"README.md", "docs/experiments.md", "docs/sdxl-on-npus.md", "docs/own-data.md"} <= {page for page, _ in ALL}


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line}" for page, line in ALL])
def test_a_command_is_understood(page, line, monkeypatch):
    words = shlex.split(line)
    assert words[0] in PROGRAMS, f"{page}: who knows {words[0]}?"
    if words[0] == "make":
        understood_by_make(words[1:])
    elif words[0] == "python":
        understood_by_python(words[1:], monkeypatch)
    elif words[0] == "dvc":
        understood_by_dvc(words[1:])
    elif words[0] == "hf":
        understood_by_hf(words[1:])
    elif words[0] == "ray":
        scripts = pytest.importorskip("ray.scripts.scripts", reason="Ray is not installed here")
        scripts.cli.commands[words[1]].make_context("ray", words[2:])


def understood_by_hf(words: list[str]) -> None:
    """Nothing is downloaded: the files are those that params.yaml of the presets names."""
    assert words[0] == "download" and words[-2] == "--local-dir"
    preset = yaml.safe_load((ROOT / "presets/sdxl.yaml").read_text())["model"]
    there = {f"{words[-1]}/{name}" for name in words[2:-2]}
    assert preset["base"] in there or there == {f"{preset['tokenizer']}/{n}" for n in ("vocab.json", "merges.txt")}


def understood_by_make(words: list[str]) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    asked = [word for word in words if "=" not in word]
    assert asked and set(asked) <= set(targets), words
    for variable, value in (word.split("=", 1) for word in words if "=" in word):
        assert f"$({variable})" in (ROOT / "Makefile").read_text(), variable
        if variable == "NAME":
            assert (ROOT / f"presets/{value}.yaml").exists(), value
        if variable == "AGAINST":
            assert (ROOT / value).exists(), value


def understood_by_python(words: list[str], monkeypatch) -> None:
    """The tool's own parser reads the arguments, and stops before the work."""
    assert words[0] == "-m"
    module, *arguments = words[1:]
    package, _, name = module.partition(".")
    if package == "pipeline" and not name:
        if arguments[0] == "--help":
            return
        name, *arguments = arguments
    if package != "pipeline":
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or name == "NAME", module
        return
    if "|" in arguments:  # a list of the tool's commands
        for command in " ".join(arguments).split(" | "):
            understood_by_python(["-m", module, command], monkeypatch)
        return
    parsed = []
    monkeypatch.setattr(cli, "run", lambda made, work, given=None: parsed.append(made.parse_args(given)))
    tool = __import__(TOOLS[name][0], fromlist=["main"])
    if arguments[-1:] == ["--help"]:
        return
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    tool.main()
    assert isinstance(parsed[0], argparse.Namespace)


def understood_by_dvc(words: list[str]) -> None:
    from dvc.cli import parse_args

    if words in (["add"], ["plots"], ["exp"]):  # named in a sentence
        with pytest.raises(SystemExit, match="0"):
            parse_args([*words, "--help"])
        return
    given = parse_args(words)  # raises when it does not know them
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    if words[0] in ("repro", "push", "pull"):
        assert set(given.targets or ()) <= stages.keys(), words
    for change in getattr(given, "params", None) or ():
        key, _, values = change.partition("=")
        for value in values.split(","):
            fits(key, params.parse(value, key))


def fits(key: str, value: object) -> None:
    """`value` is one that the schema takes; what keys demand of each other is left to whoever sets several."""
    tree = params.parse((ROOT / "params.yaml").read_text(), "params.yaml")
    section, inner, *place = key.split(".")
    if place:  # in a list, as DVC takes it
        tree[section][inner][int(place[0])] = value
    else:
        tree[section][inner] = value
    try:
        params.Params.model_validate(tree)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] != "contradictions"]
        assert not faults, (key, faults)


def test_settings_within_sentences_fit():
    found = 0
    for page in PAGES:
        for text in re.findall(r"`(-S [^`…]*)`", prose(page)):
            words = shlex.split(text)
            assert set(words[::2]) == {"-S"}, f"{page.name}: {text}"
            for change in words[1::2]:
                key, _, value = change.partition("=")
                fits(key, params.parse(value, key))
                found += 1
    assert found > 10


def test_keys_and_values_that_do_not_exist_are_found():
    for key, value in (("train.lerning_rate", 1e-5), ("train.precision", "fp16")):
        with pytest.raises(AssertionError, match=key):
            fits(key, value)


def test_blocks_of_settings_fit_the_schema():
    found = 0
    for page in PAGES:
        for _, language, text in FENCE.findall(page.read_text()):
            tree = params.parse(text, page) if language == "yaml" else {}
            if "sets" in tree:
                sets_file.File.model_validate(tree)
            else:
                for section, keys in tree.items():
                    for inner, value in keys.items():
                        fits(f"{section}.{inner}", value)
                        found += 1
    assert found > 10


def test_the_clusters_manifest_is_of_this_ray():
    tree = yaml.safe_load((ROOT / "docs/raycluster.yaml").read_text())
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayCluster")
    assert f"ray=={tree['spec']['rayVersion']}\n" in (ROOT / "requirements-ray.txt").read_text()
    (workers,) = tree["spec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    npus = container["resources"]["limits"]["huawei.com/Ascend910"]
    # one for each that the device plug-in gives; as `ray start --resources` takes it, in a shell's quotes
    assert yaml.safe_load(yaml.safe_load(workers["rayStartParams"]["resources"])) == {"NPU": int(npus)}


def manifest_changes():
    """-> what a user may do to the manifest, each of which Kubernetes would refuse or drop."""
    yield "as it is", lambda tree: None
    yield "a field of another name", lambda tree: tree["spec"]["workerGroupSpecs"][0].update(replica=4)
    yield "no image's container", lambda tree: tree["spec"]["headGroupSpec"]["template"]["spec"].pop("containers")
    yield (
        "a number where text is wanted",
        lambda tree: tree["spec"]["headGroupSpec"]["rayStartParams"].update(port=6379),
    )
    yield "no name of a group", lambda tree: tree["spec"]["workerGroupSpecs"][0].pop("groupName")


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in manifest_changes()])
def test_the_clusters_manifest_is_one_of_kuberays(request, change):
    jsonschema = pytest.importorskip("jsonschema", reason="it comes with Ray: pip install -r requirements-ray.txt")
    tree = yaml.safe_load((ROOT / "docs/raycluster.yaml").read_text())
    change(tree)
    checked = jsonschema.Draft202012Validator(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    assert checked.is_valid(tree) == (request.node.callspec.id == "as it is"), list(checked.iter_errors(tree))


def test_keys_that_are_named_exist():
    keys = {f"{section}.{key}" for section, field in params.Params.model_fields.items()
            for key in field.annotation.model_fields}  # fmt: skip
    sections = "|".join(params.Params.model_fields)
    for page in PAGES:
        for name in re.findall(rf"`((?:{sections})\.\w+)(?=[`:])", prose(page)):
            assert name in keys or (ROOT / name).exists(), f"{page.name}: {name}"


# Messages


def literals() -> list[str]:
    """All texts in the code, of f-strings what stands between the values."""
    found = []
    for file in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        nodes = ast.walk(ast.parse(file.read_text()))
        found += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found


def test_troubleshooting_has_the_messages_of_the_code():
    """The first column's code, but for the shell's, DVC's and pydantic's own words; `…` stands for a value."""
    others = {"command not found: dvc", "No module named mindspore", "Unable to acquire lock", "missing data source",
              "is not a git repository", "dvc repro",
              "No file hash info found for", "is empty", "failed to reproduce 'train': [Errno 2] No such file"}  # fmt: skip
    said, checked = literals(), 0
    for row in re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M):
        for message in set(re.findall(r"`([^`]+)`", row)) - others:
            for piece in filter(str.strip, message.split("…")):
                assert any(piece in text for text in said), piece
                checked += 1
    assert checked > 40


def test_the_readme_says_what_an_npu_wants_and_that_none_was_there():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    words = ["CANN", "driver", "firmware", "`set_env.sh`", "first things to try", "deterministic", "exact resume"]
    words += ["**Nothing was run on an NPU so far**", "compiled, not run"]
    assert [word for word in words if word not in text] == []
    page = " ".join((ROOT / "docs/sdxl-on-npus.md").read_text(encoding="utf-8").split())
    assert [release for release in ("CANN 9.1.0", "CANN 8.5.0", "Ascend HDK 26.0.RC1") if release not in page] == []


def test_the_first_things_to_try_stand_as_the_table_says():
    rows = re.findall(
        r"^\| `(device\.\w+)` \| `(\w+)`", (ROOT / "docs/sdxl-on-npus.md").read_text(encoding="utf-8"), re.M
    )
    assert len(rows) == 5
    for name in preset.PRESETS:
        settings = preset.values(name)
        assert {key: settings[key] for key, _ in rows} == {key: yaml.safe_load(value) for key, value in rows}, name


def test_the_doctors_page_lists_all_tools():
    text = " ".join((ROOT / "docs/doctor.md").read_text(encoding="utf-8").split())
    listed = re.search(r"--help` lists them: (.+?)\. Each", text)[1]
    assert re.findall(r"`(\w+)`", listed) == list(TOOLS)

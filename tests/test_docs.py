"""README and docs/: links lead somewhere, commands are understood as they are written, and the cheap ones are run."""

import argparse
import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline import cli, params
from pipeline.__main__ import TOOLS
from tests import data_sets
from tests.project import ROOT, copy_project

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.S | re.M)
PROGRAMS = {"git", "dvc", "source", "export", "hf", "make", "python"}


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


def test_the_picture_is_small():
    assert 10_000 < (ROOT / "docs/images/demo.png").stat().st_size < 200_000


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
    section, _, inner = key.partition(".")
    tree[section][inner] = value
    try:
        params.Params.model_validate(tree)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] != "contradictions"]
        assert not faults, (key, faults)


def test_keys_and_values_that_do_not_exist_are_found():
    for key, value in (("train.lerning_rate", 1e-5), ("train.precision", "fp16")):
        with pytest.raises(AssertionError, match=key):
            fits(key, value)


def test_blocks_of_settings_fit_the_schema():
    found = 0
    for page in PAGES:
        for _, language, text in FENCE.findall(page.read_text()):
            if language == "yaml":
                for section, keys in params.parse(text, page).items():
                    for inner, value in keys.items():
                        fits(f"{section}.{inner}", value)
                        found += 1
    assert found > 10


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
              "is not a git repository", "dvc repro"}  # fmt: skip
    said, checked = literals(), 0
    for row in re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M):
        for message in set(re.findall(r"`([^`]+)`", row)) - others:
            for piece in filter(str.strip, message.split("…")):
                assert any(piece in text for text in said), piece
                checked += 1
    assert checked > 40


# Commands that are run


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy with the demo's data, and without outs."""
    root = tmp_path_factory.mktemp("clone")
    copy_project(root)
    for name in ("images", "base"):
        (root / "data" / name).symlink_to(ROOT / "data" / name)
    return root


def run(root: Path, line: str) -> str:
    """Run a line as a shell with the environment of the tests would."""
    env = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "PIPELINE_STORE")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env |= {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["bash", "-c", line], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


CHEAP = {  # command, as a page has it -> what it says
    "python -m pipeline --help": "weights",
    "python -m pipeline data /path/to/pictures": "300 with captions",
    "python -m pipeline weights inspect data/base/tiny_sdxl.safetensors": "base model of model.config tiny",
    "python -m pipeline cache ls": "",
    "python -m pipeline cache gc --dry-run": "",
    "make preset NAME=sdxl-8x910b": "model.config",  # and from here on params.yaml is SDXL's
    "python -m pipeline plan --images 10000": "Caches of 10,000 pictures",
}


@pytest.mark.parametrize("line", CHEAP)
def test_a_cheap_command_is_run(clone, line):
    assert any(line == written for _, written in ALL), f"no page has it any more: {line}"
    # the environment that make would make is the tests' own
    line = re.sub(r"^make preset NAME=", "python -m pipeline preset ", line)
    assert CHEAP[line.replace("python -m pipeline preset ", "make preset NAME=")] in run(
        clone, line.replace("/path/to/pictures", "data/images")
    )


# Forms of data sets


def test_the_examples_of_data_sets_are_read(tmp_path):
    """Each name and caption of the page finds its partner."""
    page = (ROOT / "docs/own-data.md").read_text()
    kohya = re.search(r"```text\npictures/\n(.*?)```", page, re.S)[1]
    files = {}
    for name, caption in re.findall(r"^  (\S+) *(.*)$", kohya, re.M):
        files[name] = caption or data_sets.picture(len(files), 64, 64)
    data_sets.write_folder(tmp_path / "kohya", files)
    lines = re.search(r"```json\n(.*?)```", page, re.S)[1]
    named = [json.loads(line)["file_name"] for line in lines.splitlines()]
    pictures = {name: data_sets.picture(number, 64, 64) for number, name in enumerate(named)}
    data_sets.write_folder(tmp_path / "folder", pictures | {"metadata.jsonl": lines})
    table = re.search(r"```csv\n(.*?)```", page, re.S)[1]
    data_sets.write_folder(tmp_path / "table", {"fox.png": data_sets.picture(0, 64, 64), "metadata.csv": table})
    for name, count in (("kohya", 2), ("folder", 3), ("table", 1)):
        found = json.loads(run(ROOT, f"python -m pipeline data {tmp_path / name} --json"))
        assert (found["pictures"], found["captioned"], found["lost"]) == (count, count, {}), found


# Experiments are shared


STUB = """
import sys, time, yaml
from pathlib import Path

name = Path(sys.argv[0]).stem
stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][name]
for out in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
    file = Path(out if Path(out).suffix else f"{out}/file")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}" if file.suffix == ".json" else f"{name} at {time.time_ns()}")
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """The folder of a first clone, which has run; its stages are stand-ins that write other bytes each time."""
    root = tmp_path_factory.mktemp("team")
    (root / "first").mkdir()
    copy_project(root / "first")
    for stage in (root / "first/stages").glob("[a-z]*.py"):
        stage.write_text(STUB)
    for name in ("images/a.txt", "base/tiny_sdxl.safetensors"):
        file = root / "first/data" / name
        file.parent.mkdir(parents=True)
        file.write_text("a")
    first = root / "first"
    run(root, "git init -q --bare --initial-branch=main origin.git")
    run(first, "git init -q --initial-branch=main && git add --all && git commit -qm start")
    run(first, "git remote add origin ../origin.git && git push -q --set-upstream origin main")
    run(root, "git clone -q origin.git second")
    assert run(first, "dvc repro").count("Running stage") == 7
    return root


def block(page: str, first_line: str) -> str:
    """A block of commands as it is written."""
    found = [text for _, _, text in FENCE.findall((ROOT / page).read_text()) if text.startswith(first_line)]
    assert len(found) == 1, first_line
    return found[0]


def test_outs_go_by_a_remote_to_a_second_clone_where_nothing_runs(team):
    first, second = team / "first", team / "second"
    push = block("docs/experiments.md", "dvc remote add --default team ").replace("/mnt/team/dvc", str(team / "remote"))
    run(first, f"set -e\n{push}")
    output = run(second, f"set -e\n{block('docs/experiments.md', 'git pull')}")
    assert "Running stage" not in output and "up to date" in output
    name = "outs/latents/file"
    assert (second / name).read_text() == (first / name).read_text()


def test_experiments_are_made_and_kept(team):
    """The stages are stand-ins, and no queue is started: tests/test_dvc.py runs the real ones."""
    first, page = team / "first", "docs/experiments.md"
    run(first, f"{block(page, 'dvc exp run -S').strip()} -n low-rate")
    for line in block(page, "dvc exp run --queue").splitlines():
        if line != "dvc queue start":
            run(first, line)
    assert "low-rate" in run(first, block(page, "dvc exp show").splitlines()[0])
    run(first, f"set -e\n{block(page, 'dvc exp apply')}")
    assert "learning_rate: 2e-0" in (first / "params.yaml").read_text()
    run(first, "dvc exp remove low-rate")


def test_the_caches_alone(team):
    first = team / "first"
    if not (team / "remote").exists():
        run(first, f"dvc remote add --default team {team / 'remote'}")
    run(team, "git clone -q first third && cp first/.dvc/config third/.dvc/config && cp first/dvc.lock third/")
    (line,) = {text for _, text in ALL if text.startswith("dvc push index")}
    run(first, line)
    run(team / "third", line.replace("push", "pull"))
    assert (team / "third/outs/latents/file").exists() and not (team / "third/outs/merge").exists()

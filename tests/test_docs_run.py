"""Every command of README and docs/ is run as it is written, or it stands here why not.

Most run in a project whose stages are stand-ins that take no time, because what counts is that make, git, DVC and the
tools take the command; tests/test_dvc.py has the real stages."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from tests.data import data_sets
from tests.project import ROOT, copy_project
from tests.test_docs import ALL, FENCE

DEMO_OF_A_WORD = (
    "dvc exp run -S data.images=/path/to/words -S train.text_encoders=clip_l -S train.steps=160 -S train.lr_warmup_steps=20 "
    "-S train.validation_share=0.0 -S sample.steps=20 -S 'sample.prompts=[zorp a green heart on a light yellow background, "
    "a green heart on a light yellow background]'"
)
OTHER_OBJECTIVES = (
    "dvc exp run -n v -S diffusion.prediction=v -S diffusion.zero_terminal_snr=true -S sample.guidance_rescale=0.7 "
    "-S train.learning_rate=1.5e-3 -S train.adam_beta2=0.99 -S sample.steps=20",
    "dvc exp run -n flow -S diffusion.prediction=flow -S diffusion.zero_terminal_snr=false -S sample.guidance_rescale=0.0 "
    "-S train.timestep_distribution=logit_normal -S train.learning_rate=1.5e-3 -S train.adam_beta2=0.99 -S sample.steps=20",
)
# Command -> why it is not run here.
NOT_HERE = {
    "hf download stabilityai/stable-diffusion-xl-base-1.0 sd_xl_base_1.0.safetensors --local-dir data/base": "7 GB",
    "hf download openai/clip-vit-large-patch14 vocab.json merges.txt --local-dir data/clip_tokenizer": "a network",
    "make repro S3=1": "a network",
    "python -m pipeline data refresh": "tests/data/test_far_dvc.py",
    "make docs": "a network; CI runs it",
    "make test": "this is it",
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh": "an NPU's",
    "python -m stages.train": "tests/training/test_train.py and others",
    "python -m tests.training.two_nodes": "minutes; by hand",
    "python -m benchmarks.NAME": "minutes, and a machine of its own",
    "python -m benchmarks.live_step": "minutes, and a machine of its own",
    "make repro RAY=1": "a network",
    "ray start --head --node-ip-address=10.0.0.1 --port=6379 --disable-usage-stats --include-dashboard=false": "several computers; tests/cache/test_cache_cluster.py has a cluster",
    "ray start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2": "several computers",
    "export RAY_AUTH_MODE=token": "tests/cache/test_cache_cluster.py",
    "python -m tests.cache.kill_nodes": "minutes; by hand",
    "python -m tests.training.kill_nodes": "minutes; by hand",
    "python -m tests.cluster_demo CLONE": "minutes; by hand",
    "python -m tests.cluster_demo CLONE --steps 20": "minutes; by hand",
    "python -m tests.training.eight_ranks": "minutes; by hand",
    "python -m tests.training.compare_sources CLONE": "minutes; by hand",
    "python -m benchmarks.cluster_nodes FOLDER": "minutes",
    "python -m benchmarks.kernels": "tests/models/test_kernels.py",
    "python -m benchmarks.full_graph --npu": "ten minutes and 22 GB",
    "python -m pipeline cache show": "tests/cache/test_cache_tools.py, and the report's latents",
    "python -m pipeline doctor --json": "tests/doctor/test_doctor.py",
    "python -m pipeline weights show outs/merge/merged.safetensors": "tests/weights/test_provenance.py",
    "python -m pipeline.weights show outs/merge/merged.safetensors": "tests/weights/test_provenance.py",
    "python -m demo.word /path/to/words": "tests/test_demo.py",
    "python -m demo.word --check": "tests/test_demo.py",
    "python -m demo.check": "tests/test_demo.py",
    "python -m benchmarks.weights_dtype FOLDER": "an hour",
    "python -m pipeline weights extract --rank 64": "tests/weights/test_extract.py",
    "python -m pipeline.cache ls | verify | show | gc": "each as python -m pipeline cache",
    "python -m pipeline weights inspect model.safetensors": "with another file",
}

# In a copy with the demo's data and without outs: command -> what it says.
ON_THE_DEMO = {
    "source .venv/bin/activate": "",
    "python -m pipeline --help": "weights",
    "python -m pipeline data /path/to/pictures": "300 with captions",
    "python -m pipeline data report": "300 of 300 pictures are used",
    "python -m pipeline data report /path/to/pictures": "300 of 300 pictures are used",
    "python -m pipeline.data show": "cache_text will have 298 rows of 25,024 bytes",
    "python -m pipeline weights inspect data/base/tiny_sdxl.safetensors": "base model of model.config tiny",
    "python -m pipeline cache ls": "0 states in the store",
    "python -m pipeline cache verify": "0 files are whole",
    "python -m pipeline cache gc --dry-run": "would remove 0 files",
    "python -m stages.index": "300 of 300 pictures are used",
    "python -m pipeline.report --help": "usage: python -m pipeline report",
    "python -m pipeline plan --plot plan.html": "",
    "python -m pipeline.plan": "",
    "python -m pipeline doctor --no-training": "The run can start",
    "make doctor": "The run can start",
    "python -m pipeline keys": "`learning_rate`",
    "make preset NAME=sdxl-1x910b": "sdxl-1x910b",
    "make preset NAME=sdxl-lora-1x910b": "train.adapter",
    "make preset NAME=sdxl-16x910b": "device.nodes",
    "make preset NAME=sdxl-8x910b": "sdxl-8x910b",
    "python -m pipeline plan --images 10000": "Caches of 10,000 pictures",
    "make preset NAME=tiny": "preset tiny",
}

STAND_IN = """
import sys, time, yaml
from pathlib import Path

name = Path(sys.argv[0]).stem
stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][name]
texts = {
    "outs/train/live/metrics.json":
        '{"step": 3, "train": {"loss": 0.5}, "validation": {"loss": 0.4, "best_loss": 0.3}}',
    "outs/train/live/log.jsonl": '{"step": 1, "train/loss": 0.5}\\\\n',
}
for out in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
    files = [Path(out) if Path(out).suffix else Path(out) / "file"]
    if out == "outs/train/live/plots/metrics":
        files = [Path(out) / kind / "loss.tsv" for kind in ("train", "validation")]
    if out == "outs/train/weights":
        files.append(Path(out) / "step-00000300.ckpt")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "step\\\\tloss\\\\n1\\\\t0.5\\\\n" if file.suffix == ".tsv" else texts.get(out)
        file.write_text(text or f"{name} at {time.time_ns()}")
""".replace("\\\\\\\\", "\\\\")
PAGE = "docs/experiments.md"


def run(root: Path, line: str, answer: str = "") -> str:
    """Run a line as a shell with the environment of the tests would."""
    env = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "PIPELINE_STORE")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env |= {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["bash", "-c", line], cwd=root, env=env, capture_output=True, text=True, input=answer)
    # a plan of SDXL ends with 1 where this machine's disk has no room for it
    fine = (0, 1) if line.startswith("python -m pipeline plan") and "does NOT fit: " in done.stdout else (0,)
    assert done.returncode in fine, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def dvc(root: Path, line: str) -> str:
    """Run a line of dvc's in this process: most of its time goes into its import. Returns what it printed."""
    from dvc.cli import main

    words, said = shlex.split(line), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(root)
        for name in ("DVC_ROOT", "PIPELINE_STORE"):
            patch.delenv(name, raising=False)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        for what in ("NAME", "EMAIL"):
            patch.setenv(f"GIT_AUTHOR_{what}", "t@example.com")
            patch.setenv(f"GIT_COMMITTER_{what}", "t@example.com")
        assert words[0] == "dvc" and main(words[1:]) == 0, line
    return said.getvalue()


def either(root: Path, line: str) -> str:
    return (dvc if line.startswith("dvc ") else run)(root, line)


def shorten(graph: Path) -> None:
    """Leave of the graph's dependencies what the stand-ins need and the commands set: DVC reads the lists with each stage,
    which takes most of its time. tests/test_graph.py and tests/test_dvc.py have the whole."""
    named = {key for _, line in ALL for key in re.findall(r"-S '?(\w+\.\w+)=", line)}
    tree = yaml.safe_load(graph.read_text())
    for stage in tree["stages"].values():
        stage["params"] = [key for key in stage["params"] if key in named]
        stage["deps"] = [path for path in stage["deps"] if not path.startswith("pipeline/")]
    graph.write_text(yaml.safe_dump(tree, sort_keys=False))


def link_environment(root: Path) -> None:
    """The environment that make would make is the tests' own."""
    (root / ".venv").mkdir()
    for file in Path(sys.prefix).iterdir():
        if not file.name.startswith("."):
            (root / ".venv" / file.name).symlink_to(file)
    for mark in (".run", ".test", ".npu"):
        (root / ".venv" / mark).touch()


def block(page: str, first_line: str) -> str:
    """A block of commands as it is written."""
    found = [text for _, _, text in FENCE.findall((ROOT / page).read_text()) if text.startswith(first_line)]
    assert len(found) == 1, first_line
    return found[0]


def lines(page: str, first_line: str) -> list[str]:
    return [re.sub(r"\s+#.*", "", line) for line in block(page, first_line).splitlines()]


# The tools, on the demo's data


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    copy_project(root)
    link_environment(root)
    for name in ("images", "base"):
        (root / "data" / name).symlink_to(ROOT / "data" / name)
    return root


def test_on_the_demo(demo):
    """One after the other: `plan` asks the index, `make preset` changes params.yaml."""
    for line, said in ON_THE_DEMO.items():
        assert said in run(demo, line.replace("/path/to/pictures", "data/images")), line


def test_the_examples_of_data_sets_are_read(tmp_path):
    """Each name and caption of the page finds its partner."""
    page = (ROOT / "docs/own-data.md").read_text()
    kohya = re.search(r"```text\npictures/\n(.*?)```", page, re.S)[1]
    files = {}
    for name, caption in re.findall(r"^  (\S+) *(.*)$", kohya, re.M):
        files[name] = caption or data_sets.picture(len(files), 64, 64)
    data_sets.write_folder(tmp_path / "kohya", files)
    described = re.findall(r"```json\n(.*?)```", page, re.S)
    assert len(described) == 3  # captions; repeats and weights; centres of interest
    for number, rows in enumerate(described):
        named = [json.loads(row)["file_name"] for row in rows.splitlines()]
        pictures = {name: data_sets.picture(number, 640, 480) for number, name in enumerate(named)}
        data_sets.write_folder(tmp_path / f"folder{number}", pictures | {"metadata.jsonl": rows})
    toml = re.search(r"```toml\n(.*?)```", page, re.S)[1]
    of_kohya = {"fox/0.png": data_sets.picture(0, 64, 64), "fox/1.png": data_sets.picture(1, 64, 64)}
    data_sets.write_folder(tmp_path / "toml", of_kohya | {"fox/1.txt": "a fox", "dataset.toml": toml})
    table = re.search(r"```csv\n(.*?)```", page, re.S)[1]
    data_sets.write_folder(tmp_path / "table", {"fox.png": data_sets.picture(0, 64, 64), "metadata.csv": table})
    for name, count in (("kohya", 2), ("folder0", 3), ("folder1", 2), ("folder2", 2), ("table", 1), ("toml", 2)):
        found = json.loads(run(ROOT, f"python -m pipeline data {tmp_path / name} --json"))
        assert (found["pictures"], found["captioned"], found["lost"]) == (count, count, {}), found
        assert found["used"] == found["decoded"] == count and found["focused"] == (2 if name == "folder2" else 0)
        assert [(one["name"], one["pictures"]) for one in found["sets"]] == ([("fox", 2)] if name == "toml" else [])
    # repeats and weights reach the tables
    source = open_source(str(tmp_path / "folder1"))
    assert next(source.parts()).times.tolist() == [0.5, 10.0]  # birds/owl.jpg and fox.png
    (one,), _ = find(str(tmp_path / "toml"), open_source(str(tmp_path / "toml")))
    assert (one.folder, one.repeats, one.caption) == ("fox", 10, "sks fox")


# make, DVC and git, with stand-ins


SHARING = "dvc remote add --default team "
FETCHING = "git pull"
QUEUE = "dvc exp run --queue"
COMPARING = "python -m pipeline exps"
KEEPING = "dvc exp apply"
CLEANING = "python -m pipeline cache ls"


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """The folder of two clones: the first has run and pushed, the second has pulled (its output is in second.log). The
    stages are stand-ins that write other bytes each time."""
    root = tmp_path_factory.mktemp("team")
    first = root / "first"
    first.mkdir()
    copy_project(first)
    link_environment(first)
    for stage in (first / "stages").glob("[a-z]*.py"):
        stage.write_text(STAND_IN)
    shorten(first / "dvc.yaml")
    for name in ("images/a.txt", "base/tiny_sdxl.safetensors"):
        file = first / "data" / name
        file.parent.mkdir(parents=True)
        file.write_text("a")
    run(root, "git init -q --bare --initial-branch=main origin.git")
    run(first, "git init -q --initial-branch=main && git add --all && git commit -qm start")
    run(first, "git remote add origin ../origin.git && git push -q --set-upstream origin main")
    run(root, "git clone -q origin.git second")
    assert run(first, "make repro").count("Running stage") == 7
    run(first, f"set -e\n{block(PAGE, SHARING).replace('/mnt/team/dvc', str(root / 'remote'))}")
    (root / "second.log").write_text(run(root / "second", f"set -e\n{block(PAGE, FETCHING)}"))
    return root


NAMED = [  # in sentences and tables, and on other pages
    *("dvc repro", "make repro NPU=1", "dvc repro index", "dvc repro convert", "dvc repro cache_latents cache_text"),
    *("dvc repro train", "dvc repro merge", "dvc repro sample", "dvc exp run --temp"),
    "dvc exp run -S data.images=/path/to/pictures",
    "dvc exp run -S train.steps=500",
    "dvc exp run -S 'sample.prompts=[a fox, {prompt: a ship, seed: 7}]'",
    "dvc exp run -S 'sample.saved_steps=[200, 400]'",
    "dvc exp run -S 'train.groups=[{pattern:\"!*.attn?.*\",freeze:true}]'",
    "dvc exp run -S device.nodes=2 -S device.node_rank=0 -S device.master=10.0.0.1:8118",
    "dvc exp run -S model.lora_folder=/path/to/loras -S 'model.loras=[{path: style.safetensors, weight: 0.8}]'",
    "dvc exp run --queue -S 'train.rank=8,16,32,64' -S train.adapter=lora",
    "dvc exp run -S train.source=pictures -S cache_latents.crop=random -S cache_latents.flip=true",
    "dvc exp run -S train.text_encoders=clip_l -S train.text_encoder_learning_rate=1e-5",
    *("make report", "make report AGAINST=presets/tiny.yaml", "export PIPELINE_STORE=/shared/store"),
    *("dvc add my-pictures", "dvc add data/base/sd_xl_base_1.0.safetensors"),
    *("export PIPELINE_STORE=/data/store", "dvc status"),
    "dvc exp run -S train.save_interval=100 -S train.keep_best=true",
    "dvc exp run -S merge.weights=300",
    "dvc exp run -S train.lr_scheduler=constant_with_warmup -S train.keep_state=true -S train.steps=600",
    "dvc exp run -S train.steps=900",
    "dvc exp run -S train.tensorboard=true",
    "dvc exp run -S train.adapter=lora -S train.learning_rate=1e-4",
    "dvc exp run -S train.adapter=dora -S train.steps=200 -S train.learning_rate=2e-3",
    "dvc exp run -S train.adapter=loha -S train.steps=200 -S train.learning_rate=2e-3",
    "dvc exp run -S train.adapter=lokr -S train.steps=600 -S train.learning_rate=1e-3",
    "dvc exp run -S train.adapter=lora -S train.text_encoders=both -S train.text_encoder_learning_rate=5e-5",
    *("dvc exp run -S device.cluster=auto", "dvc exp run -S device.cluster=auto -S device.nodes=2 -S device.workers=8"),
    *(DEMO_OF_A_WORD, *OTHER_OBJECTIVES),
]
STARTING = [  # from the weights of the experiment low-rate
    "dvc get . outs/train/weights/step-00000300.ckpt --rev low-rate -o data/start.ckpt",
    "dvc exp run -S train.init_from=data/start.ckpt",
]


def test_outs_go_by_a_remote_to_a_second_clone_where_nothing_runs(team):
    first, second = team / "first", team / "second"
    output = (team / "second.log").read_text()
    assert "Running stage" not in output and "up to date" in output
    name = "outs/latents/file"
    assert (second / name).read_text() == (first / name).read_text()
    run(team, "git clone -q origin.git third")
    push = "dvc push index convert cache_latents cache_text"
    run(first, push)
    run(team / "third", push.replace("push", "pull"))  # as the page says: with the same names
    assert (team / "third/outs/latents/file").exists() and not (team / "third/outs/merge").exists()


def test_a_queue_is_worked_off_compared_and_cleaned_up(team):
    first = team / "first"
    dvc(first, "dvc exp run -S train.learning_rate=2e-5 -n low-rate")
    dvc(first, "dvc exp run -S train.huber_c=0.2 -n high-rate")  # the page names two that the user has made
    for line in lines(PAGE, QUEUE):
        run(first, line)
    until = time.monotonic() + 600
    while re.search("Queued|Running", status := dvc(first, "dvc queue status")):
        assert time.monotonic() < until, status
        time.sleep(5)
    assert status.count("Success") == 3, status
    run(first, "dvc queue stop")
    said = "".join(either(first, line) for line in lines(PAGE, COMPARING))
    assert "best validation" in said and said.count("low-rate") >= 3 and (first / "dvc_plots/report.html").exists()
    assert "5e-05" in said
    run(first, "dvc exp push origin")
    run(team / "second", "git pull && dvc exp pull origin low-rate")
    run(first, f"set -e\n{block(PAGE, KEEPING)}")
    assert "learning_rate: 2e-0" in (first / "params.yaml").read_text()
    for line in lines(PAGE, CLEANING):
        run(first, line, answer="y\n")


def test_what_sentences_and_tables_name(team):
    first = team / "first"
    data_sets.write_folder(first / "my-pictures", {"a.txt": "a"})
    (first / "data/base/sd_xl_base_1.0.safetensors").write_text("a")
    for line in NAMED:
        line = line.replace("/path/to/pictures", str(first / "data/images"))
        line = line.replace("/path/to/words", str(first / "data/images"))
        line = line.replace("/path/to/loras", str(first / "data/loras"))
        either(first, line)
    assert (first / "my-pictures.dvc").exists() and (first / "dvc_plots/report.html").exists()
    # the ranks; what `dvc queue start` does is tried above
    assert run(first, "dvc queue status").count("Queued") == 4
    run(first, "dvc queue remove --queued")


def test_weights_of_another_experiment_are_a_start(team):
    first = team / "first"
    dvc(first, "dvc exp run -S train.learning_rate=4e-5 -n low-rate")
    dvc(first, "dvc exp run -S train.learning_rate=1e-5")
    for line in STARTING:
        either(first, line)
    assert (first / "data/start.ckpt").read_text().startswith("train at")
    assert (first / "data/start.ckpt").read_text() != (first / "outs/train/weights/step-00000300.ckpt").read_text()


def test_each_command_of_the_pages_is_run():
    ran = {*ON_THE_DEMO, *NAMED, *STARTING, "make repro", "dvc exp run -S train.learning_rate=2e-5", "dvc queue status",
           "dvc push index convert cache_latents cache_text", "dvc queue stop", "dvc exp push origin",
           "dvc exp pull origin low-rate"}  # fmt: skip
    for first_line in (SHARING, FETCHING, QUEUE, COMPARING, KEEPING, CLEANING):
        ran |= set(lines(PAGE, first_line))
    written = {line for _, line in ALL}
    known = ran | NOT_HERE.keys()
    # a sentence may name a command without what it is about: `dvc add`
    new = {line for line in written if not any(f"{other} ".startswith(f"{line} ") for other in known)}
    assert new == set(), "run it: in ON_THE_DEMO or NAMED"
    assert known <= written, "no page has it any more"

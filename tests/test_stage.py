"""pipeline/stage.py: how a stage ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
import yaml

from pipeline import recorded
from pipeline.report import graph, revision, settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path):
    """A copy of the plumbing with a stage of one's own: `write(body)` gives stages/it.py this main."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stages").mkdir()
    shutil.copy2(ROOT / "params.yaml", tmp_path)

    def write(body: str) -> None:
        (tmp_path / "stages/it.py").write_text(
            "import os, sys, time\nfrom pathlib import Path\nfrom pipeline.stage import StageError, run\n"
            f"def main(params):\n    {body}\n"
            "run(main)\n"
        )

    return tmp_path, write


def start(project: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "stages.it"], cwd=project, capture_output=True, text=True, **options)


def test_an_error_for_the_user_is_a_message_and_a_code(project):
    folder, write = project
    write("raise StageError('found a, wanted b')")
    done = start(folder)
    assert done.returncode == 1 and "it.py: found a, wanted b" in done.stderr and "Traceback" not in done.stderr


def test_its_time_and_memory_are_noted_in_the_store_when_it_has_ended_well(project, tmp_path):
    folder, write = project
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK_ID", "MS_ROLE")}
    environment["PIPELINE_STORE"] = str(tmp_path / "noted")
    for body, wanted in {"raise StageError('x')": 0, "time.sleep(0.2); bytearray(300_000_000)": 1}.items():
        write(body)
        start(folder, env=environment)
        found = list((tmp_path / "noted/times").glob("it-*.json"))
        assert len(found) == wanted
    (run,) = json.loads(found[0].read_text())
    assert 0.2 <= run["seconds"] < 60 and 3e8 < run["peak_bytes"] < 1e9
    write("pass")
    start(folder, env=environment | {"RANK_ID": "1"})
    assert len(json.loads(found[0].read_text())) == 1


def test_the_report_finds_the_time_of_a_stage_that_dvc_ran(project, tmp_path, monkeypatch):
    """By what dvc.lock says: paths that params.yaml names, and values as they are written there."""
    folder, write = project
    write("Path('it').touch()")
    text = (folder / "params.yaml").read_text()
    edited = text.replace("groups: []", "groups: [{pattern: 'out.*', learning_rate: 0.5}]")
    edited = edited.replace("snr_gamma: null", "snr_gamma:     ")
    (folder / "params.yaml").write_text(edited)
    (folder / "dvc.yaml").write_text(
        "stages:\n"
        "  base: {cmd: 'mkdir -p outs/convert && touch outs/convert/unet.ckpt', outs: [outs/convert/unet.ckpt]}\n"
        f"  it: {{cmd: '{sys.executable} -m stages.it', outs: [it], params: [train, index.resolution],\n"
        "    deps: [stages/it.py, '${train.init_from}']}\n"
    )
    for name in ("PIPELINE_STORE", "RANK_ID", "OMPI_COMM_WORLD_RANK", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)
    for words in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PIPELINE_STORE", str(folder / ".store"))
    workspace = revision.workspace()
    found = {stage.name: stage for stage in graph.read(workspace, settings.read(workspace))}
    assert found["it"].state == "done" and len(found["it"].times) == 1


def test_ctrl_c_is_one_line(project):
    folder, write = project
    write("os.kill(os.getpid(), 2); time.sleep(9)")
    done = start(folder)
    assert done.returncode == 130 and "it.py: interrupted" in done.stderr and "Traceback" not in done.stderr


def test_a_bug_shows_its_traceback(project):
    folder, write = project
    write("raise KeyError('x')")
    done = start(folder)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_bad_params_stop_the_stage_before_its_work(project):
    folder, write = project
    write("Path('worked').touch()")
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("min_side: 32", "min_side: many"))
    done = start(folder)
    assert done.returncode == 1 and "index.min_side" in done.stderr and "'many'" in done.stderr
    assert not (folder / "worked").exists()


@pytest.mark.parametrize(("keys", "said"), [("train", True), ("index", False)])
def test_a_doubt_is_said_by_the_stages_that_have_its_key_before_their_work(project, keys, said):
    folder, write = project
    write("print('works', file=sys.stderr)")
    tree = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    tree["train"]["snr_gamma"] = 5.0
    tree["diffusion"] |= {"prediction": "v", "zero_terminal_snr": True}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"it": {"params": [keys]}}}))
    done = start(folder)
    before, work, _ = done.stderr.partition("works")
    assert done.returncode == 0 and work
    assert ("it.py: train.snr_gamma: with diffusion.zero_terminal_snr true the last timestep" in before) == said


def test_code_that_changed_meanwhile_fails_the_stage(project):
    """DVC would record the new code with what the old code made."""
    folder, write = project
    write("open('pipeline/params.py', 'a').write('# edited')")
    done = start(folder)
    assert done.returncode == 1 and "changed while this stage ran" in done.stderr
    write("Path('pipeline/unused.py').write_text('# edited')")
    assert start(folder).returncode == 0


LISTED = {
    "deps": ["stages/it.py", "pipeline", {"${data.images}": {"hash": "md5"}}, "${model.base}"],
    "params": ["data.images", "train"],
    "outs": ["outs/it/table"],
    "metrics": [{"outs/it/metrics.json": {"cache": False}}],
}
TOUCHED = "1 with a new time and the same size (touched or written again) (data/images/a.png)"
EDITS = {  # what is done while the stage runs -> what it must say; None: it may not fail
    "Path('data/images/c.png').write_text('c')": "data/images: 1 added (data/images/c.png)",
    "os.remove('data/images/a.png')": "data/images: 1 removed (data/images/a.png)",
    "Path('data/images/deep/b.txt').write_text('longer')": "data/images: 1 changed (data/images/deep/b.txt)",
    "os.rename('data/images/deep', 'data/images/other')": "data/images: 1 added (data/images/other/b.txt), 1 removed (",
    # size and time stay
    "s = os.stat('data/images/a.png'); Path('data/images/a.png').write_text('z'); "
    "os.utime('data/images/a.png', ns=(s.st_atime_ns, s.st_mtime_ns))": "data/images: " + TOUCHED,
    "Path('data/images/a.png').touch()": "data/images: " + TOUCHED,
    "os.symlink('s.png', 'data/images/s.png')": "data/images: 1 added (data/images/s.png)",
    "s = os.stat('data/images/a.png'); Path('n').write_text('z'); os.utime('n', ns=(s.st_atime_ns, s.st_mtime_ns)); "
    "os.replace('n', 'data/images/a.png')": "data/images: 1 changed (data/images/a.png)",
    "Path('blobs/1').write_text('other')": "data/images: 1 changed (data/images/linked.png)",
    "Path('blobs/folder/d.png').write_text('d')": "data/images: 1 added (data/images/folder/d.png)",
    "Path('base.safetensors').write_text('other')": "base.safetensors: 1 changed (base.safetensors)",
    "os.remove('base.safetensors')": "base.safetensors: 1 removed (base.safetensors)",
    "[Path(f'data/images/n{i}.png').touch() for i in range(9)]": "9 added (data/images/n0.png, data/images/n1.png, ",
    "edit('learning_rate', '7.0e-4')": "params.yaml: train.learning_rate ",
    "edit('learning_rate', 'many')": "train.learning_rate",
    "edit('max_rejected', '0.5')": None,  # not a key of this stage
    "Path('data/images/.DS_Store').touch()": None,
    "Path('data/images/a.png').read_text()": None,
    "os.link('data/images/twice.png', 'again.png')": None,  # as another task's checkout of the same file does
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_what_dvc_records_fails_the_stage_and_leaves_no_out(project, edit):
    """DVC would record it with what was made before."""
    folder, write = project
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"it": LISTED}}))
    images = folder / "data/images"
    (images / "deep").mkdir(parents=True)
    (images / "a.png").write_text("a")
    (images / "deep/b.txt").write_text("b")
    (folder / "blobs/folder").mkdir(parents=True)
    (folder / "blobs/1").write_text("c")
    (images / "linked.png").symlink_to("../../blobs/1")
    (images / "folder").symlink_to("../../blobs/folder")
    (images / "deep/up").symlink_to("..")
    (images / "self.png").symlink_to("self.png")
    (images / "twice.png").write_text("twice")
    os.link(images / "twice.png", folder / "cached.png")
    (folder / "base.safetensors").write_text("base")
    params = (folder / "params.yaml").read_text()
    params = re.sub(r"(?m)^  images: .*", "  images: data/images", params)
    (folder / "params.yaml").write_text(re.sub(r"(?m)^  base: .*", "  base: base.safetensors", params))
    write(
        "import re\n"
        "    Path('outs/it').mkdir(parents=True); Path('outs/it/table').mkdir(); Path('outs/it/table/1').touch()\n"
        "    Path('outs/it/metrics.json').touch()\n"
        "    def edit(key, value):\n"
        "        text = Path('params.yaml').read_text()\n"
        "        Path('params.yaml').write_text(re.sub(rf'(?m)^  {key}:.*', f'  {key}: {value}', text))\n"
        f"    {edit}"
    )
    done = start(folder)
    if EDITS[edit] is None:
        assert done.returncode == 0 and (folder / "outs/it/table/1").exists(), done.stderr
    else:
        assert done.returncode == 1 and "changed while this stage ran" in done.stderr, done.stderr
        assert EDITS[edit] in done.stderr and "Traceback" not in done.stderr
        assert list((folder / "outs/it").iterdir()) == []


def test_a_file_that_was_written_just_before_is_waited_for(monkeypatch):
    """A second write within the clock's tick of the first would leave its times."""
    waits = []
    monkeypatch.setattr(recorded.time, "sleep", waits.append)
    monkeypatch.setattr(recorded.time, "time_ns", lambda: 1_000_000_000_005_000_000)
    for ctime in (1_000_000_000_000_000_000, 1_000_000_000_000_000_001, 999_999_999_000_000_001, 10**19 // 2):
        files = {"": ("a", array("q", [1, 2, 3, ctime]))}
        recorded.settle(recorded.Recorded({}, {}, {"a": files}))
    # coarse times, fine ones, an old file, and a clock that is years ahead
    assert waits == [pytest.approx(1.995), pytest.approx(0.015), 0, pytest.approx(2)]


def test_a_stage_ends_with_its_parent(project):
    folder, write = project
    write("Path('pid').write_text(str(os.getpid())); time.sleep(60)")
    script = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'stages.it'])"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=folder)
    deadline = time.monotonic() + 20
    while not ((folder / "pid").exists() and (folder / "pid").read_text()):
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.05)
    pid = int((folder / "pid").read_text())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, "the stage outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("stage", ["train", None])
def test_a_stage_whose_dvc_died_before_it_began_ends(project, stage):
    """`stage`: DVC's variable, which says that dvc started it."""
    folder, write = project
    write("Path('end').write_text('worked')")
    stage_of = {"DVC_STAGE": stage} if stage else {}
    orphan = (
        "import os, subprocess, sys, time\n"
        "if os.fork() == 0:\n"
        "    while os.getppid() != 1: time.sleep(0.01)\n"
        "    os.execv(sys.executable, [sys.executable, '-m', 'stages.it'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"} | stage_of
    done = subprocess.run(
        [sys.executable, "-c", orphan], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )  # returns when the orphan has closed its output
    assert ("is gone" in done.stderr, (folder / "end").exists()) == ((True, False) if stage else (False, True))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

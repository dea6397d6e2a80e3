"""pipeline/stage.py: how a stage ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path):
    """A copy of the plumbing with a stage of one's own: `write(body)` gives stages/it.py this main."""
    (tmp_path / "pipeline/models").mkdir(parents=True)
    (tmp_path / "stages").mkdir()
    for name in ("__init__", "stage", "params", "contradictions", "store", "models/__init__", "models/config"):
        shutil.copy2(ROOT / f"pipeline/{name}.py", tmp_path / f"pipeline/{name}.py")
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


def test_code_that_changed_meanwhile_fails_the_stage(project):
    """DVC would record the new code with what the old code made."""
    folder, write = project
    write("open('pipeline/params.py', 'a').write('# edited')")
    done = start(folder)
    assert done.returncode == 1 and "changed while this stage ran" in done.stderr
    write("Path('pipeline/unused.py').write_text('# edited')")
    assert start(folder).returncode == 0


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

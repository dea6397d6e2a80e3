"""A `python` for DVC and its stages in tests: for `python -m NAME ...` it forks from a process that has imported the packages
that they import, which takes most of a small stage's time. The project's own modules are imported anew, from the folder that it
is called in.

What a process of its own would show and this does not: what is imported when, how Python ends, and that DVC keeps comments
where it changes a file."""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

OWN = ("pipeline", "stages", "tests")
# DVC, and modules of ours that together import what stages need of others; and what those import when they are first used.
IMPORTED = [
    "pipeline.device", "pipeline.models.encode", "pipeline.cache.building.engine", "pipeline.cache.building.tokens",
    "stages.index", "stages.merge", "dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc.commands.experiments.run",
    "pipeline.report.data_page", "pandas", "pyarrow.dataset", "plotly.graph_objs._bar", "plotly.graph_objs._figure",
    "dvc.repo.experiments.run", "dvc.repo.reproduce", "dvc.stage.run", "dvc.stage.cache", "dvc.repo.experiments.executor.local",
]  # fmt: skip

CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "little")], [0, 1, 2])
    server.sendall(asked)
    sys.exit(int(server.recv(8) or 1))
"""


@contextlib.contextmanager
def folder(root: Path) -> Iterator[Path]:
    """A folder for PATH with this python, while its server lives."""
    address = root / "server"
    python = root / "bin/python"
    python.parent.mkdir()
    python.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    python.chmod(0o755)
    with subprocess.Popen([sys.executable, "-m", __name__, str(address)], stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        try:
            yield python.parent
        finally:
            server.terminate()


def _serve(address: str) -> None:
    for name in IMPORTED:
        __import__(name)
    _write_yaml_quickly()
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            client, _ = listening.accept()
            if os.fork():
                client.close()
                continue
            listening.close()
            code = _run(client)
            client.sendall(str(code).encode())
            os._exit(0)


def _write_yaml_quickly() -> None:
    """By libyaml. DVC reads and writes dvc.lock for each stage, in a way that keeps comments and takes a third of its time."""
    from dvc.utils.serialize import _yaml
    from ruamel.yaml import YAML

    quick = YAML(typ="safe")
    quick.default_flow_style, quick.sort_base_mapping_type_on_output = False, False
    quick.representer.ignore_aliases = lambda data: True
    quick.representer.add_representer(OrderedDict, lambda own, value: own.represent_dict(value))
    for kind in (dict, list, str, float):  # and what DVC derives from them
        quick.representer.add_multi_representer(kind, lambda own, value, kind=kind: own.represent_data(kind(value)))
    _yaml.parse_yaml_for_update, _yaml._dump = _yaml.parse_yaml, quick.dump


def _run(client: socket.socket) -> int:
    """What was asked for, and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as asked:
        (module, *arguments), place, environment = json.loads(asked.read(int.from_bytes(size, "little")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = [module, *arguments], place
    sys.modules["ray"] = None  # its import fails: no stage without a cluster wants it
    return ended(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def ended(main: Callable[[], object]) -> int:
    """The exit code of a fork that is to end when `main` has, as Python ends; for os._exit."""
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    atexit._run_exitfuncs()  # MindSpore's ranks take leave of each other
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    # MindSpore looks at its import where the script is whose graphs it keeps.
    sys.argv[0] = str(Path(__file__).resolve())
    _serve(sys.argv[1])

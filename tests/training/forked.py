"""Train stages for tests, each a process forked from one that has imported all that a training takes (MindSpore alone
takes seconds). So are their ranks, and msrun, whose own code starts them.

What a process of its own would show and this does not: what is imported when, and how Python ends."""

import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.quick_python import ended

IMPORTED = ["tests.training.forked_imports"]


class Run:
    """A running train stage on the stub (tests/training/training_samples.py with `arguments`), with what of
    subprocess.Popen tests use."""

    def __init__(self, folder: Path, environment: dict[str, str], arguments: tuple[str, ...]):
        self._said = tempfile.NamedTemporaryFile("r", errors="replace")
        self._process = _server().Process(target=_run, args=(folder, environment, arguments, self._said.name))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> str:
        """What it has said on stderr, when it has ended."""
        self._process.join()
        with self._said:
            return self._said.read()


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)
    return server


def _run(folder: Path, environment: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    with open(said, "wb") as file:
        os.dup2(file.fileno(), 2)
    with open(os.devnull, "wb") as file:
        os.dup2(file.fileno(), 1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    from mindspore.parallel.cluster.run import main as msrun

    from tests.training import training_samples

    script = Path(training_samples.__file__)
    _fork_for({"msrun": msrun, script.name: training_samples.main})
    sys.argv = [str(script), "stub", *arguments]
    if not any(argument.startswith("device.cluster=") for argument in arguments):
        sys.modules["ray"] = None  # its import fails, in the ranks too
    training_samples.main()


def _fork_for(mains: dict[str, Callable]) -> None:
    """From now on subprocess.Popen forks for these commands, `python NAME ...` or `/.../NAME ...`, and calls their function."""
    execute = subprocess.Popen._execute_child

    def fork(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
        words = args[1:] if args[0] == "python" else args
        main = mains.get(Path(words[0]).name)
        if main is None:
            execute(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
            return
        out, error = others[6], others[8]  # c2pwrite, errwrite
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            self._close_pipe_fds(*others[3:9])
            return

        def begin():
            os.dup2(out, 1)
            os.dup2(error, 2)
            if preexec_fn:
                preexec_fn()
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            sys.argv = list(words)
            sys.exit(main())

        os._exit(ended(begin))

    subprocess.Popen._execute_child = fork

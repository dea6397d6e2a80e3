"""What all tools of the command line have in common: their help's style, their exit codes and how they say an error.

Exit codes: 0 all is well; 1 something is wrong with what was found, or it failed; 2 the command itself."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pipeline.params import ParamsError
from pipeline.stage import StageError

_CODES = "exit code: 0 all is well; 1 a problem was found, or it failed; 2 the command is not understood"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A tool's parser, to which its module adds arguments or subcommands."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline {name}",
        description=description,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="print one JSON document, for scripts")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main(
    made: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], arguments: list[str] | None = None
) -> None:
    """Parse, run and exit with the code that `run` returns (None: 0). What the user can mend is a message."""
    given = made.parse_args(arguments)
    try:
        code = run(given) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (StageError, ParamsError, OSError, pa.ArrowException) as error:
        code = f"{made.prog}: {error}"
    sys.exit(code)

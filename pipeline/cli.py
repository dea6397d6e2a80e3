"""What all tools of the command line have in common: their help's style, their exit codes and how they say an error.

Exit codes: 0 all is well; 1 something is wrong with what was found, or it failed; 2 the command itself."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.params import ParamsError
from pipeline.stage import StageError, explained

_CODES = "exit code: 0 all is well; 1 a problem was found, or it failed; 2 the command is not understood"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A tool's parser, to which its module adds arguments; its subcommands are made with `subcommand`."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline {name}".strip(),
        description=description,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def subcommand(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """A parser of `commands`, what add_subparsers gave, in the same style."""
    return commands.add_parser(
        name, help=purpose, description=purpose, epilog=_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_json(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="print one JSON document, for scripts")


def count(least: int, most: int = 10**9 - 1) -> Callable[[str], int]:
    """The type of an argument: a number of things."""

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else -1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"wanted a whole number of {least} to {most:,}, found {text!r}")
        return number

    return read


def new_file(*ends: str) -> Callable[[str], Path]:
    """The type of an argument: a file to write, whose name ends in one of `ends` and whose folder is there."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in ends:
            raise argparse.ArgumentTypeError(f"wanted a name that ends in {' or '.join(ends)}, found {text!r}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder; wanted the name of a file")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}; make it, or name another")
        return path

    return read


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def run(
    made: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int | None], arguments: list[str] | None = None
) -> None:
    """Parse, run and exit with the code that `work` returns (None: 0). What the user can mend is a message."""
    given = made.parse_args(arguments)
    try:
        code = work(given) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (StageError, ParamsError, OSError, pa.ArrowException) as error:
        code = f"{made.prog}: {explained(error)}"
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)

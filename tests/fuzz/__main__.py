"""Damaged and odd inputs of every kind that comes from outside: none may end in anything but a reason.

    python -m tests.fuzz [pictures tars ...] [--minutes 30] [--seed 0]

One process for each kind. `make test` runs each for some seconds (tests/fuzz/test_fuzz.py)."""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.fuzz import fuzz_loras, fuzz_params, fuzz_pictures, fuzz_safetensors, fuzz_sets, fuzz_tables, fuzz_tars

# Each tries inputs for so many seconds, raises AssertionError for the first defect, and returns how many it tried.
KINDS: dict[str, Callable[[float, int], int]] = {
    "loras": fuzz_loras.fuzz,
    "params": fuzz_params.fuzz,
    "pictures": fuzz_pictures.fuzz,
    "safetensors": fuzz_safetensors.fuzz,
    "sets": fuzz_sets.fuzz,
    "tables": fuzz_tables.fuzz,
    "tars": fuzz_tars.fuzz,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="kind", help=", ".join(KINDS))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; wanted {', '.join(KINDS)}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = {
            pool.submit(KINDS[kind], 60 * arguments.minutes, arguments.seed): kind for kind in arguments.kinds or KINDS
        }
        for done in as_completed(running):
            print(f"{running[done]}: {done.result():,} inputs, none of them a defect", flush=True)


if __name__ == "__main__":
    main()

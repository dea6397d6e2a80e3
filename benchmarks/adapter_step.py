"""A training step of adapters against one of all weights, on this CPU in one run: python -m benchmarks.adapter_step [KIND ...]

UNet, batch and settings are train_step's: float32, 33.2 million weights, of which an adapter of rank 16 leaves all alone.
Each kind, and "none", is a process of its own, and they take one step in turns. The peak memory is the compiler's for the
most part (docs/measured.md); what the counted steps have at their highest is said beside it, with what the compiler keeps."""

import argparse
import sys

from benchmarks.train_step import answer, answers, in_turns, mindspore_side, ratio, serve, start
from pipeline.weights.adapters.kinds import KINDS

ALL = "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", default=["lora"], help=f"some of {', '.join(KINDS)}; default: lora"
    )
    parser.add_argument("--steps", type=int, default=60, help="of each side")
    parser.add_argument("--side", choices=[ALL, *KINDS], help="what this script starts itself with")
    options = parser.parse_args()
    if options.side:
        out = answers()
        serve(*mindspore_side(options.side), out)
        return
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}: there are {', '.join(KINDS)}")
    processes, begun = {}, {}
    for side in (ALL, *options.kinds):  # one after the other: each compiles on all cores
        processes[side] = start(sys.executable, side, "benchmarks.adapter_step")
        begun[side] = answer(processes[side])
        answer(processes[side])
    seconds = in_turns(processes, begun, options.steps)
    for kind in options.kinds:
        print(f"{kind} / all weights: {ratio(seconds[kind], seconds[ALL])}")


if __name__ == "__main__":
    main()

"""The tools of the pipeline, one a line; `python -m pipeline TOOL --help` explains each.

The stages themselves are run by `dvc repro`, or one alone by `python -m stages.NAME`."""

import importlib
import sys

from pipeline import cli

# Tool -> (its module, whose main() reads the command line; what it is for). A module is imported when it is asked for:
# most need neither pictures nor MindSpore.
TOOLS = {
    "preset": ("pipeline.preset", "write params.yaml for a model and a number of NPUs"),
    "keys": ("pipeline.keys", "explain the keys of params.yaml: what each may be, what it does, which stages read it"),
    "doctor": ("pipeline.doctor.__main__", "say whether the run of params.yaml can start, and what to do if not"),
    "plan": ("pipeline.plan", "say what a training run will take: memory, disk, steps, hours"),
    "data": ("pipeline.data.__main__", "look at pictures and captions before they are indexed"),
    "weights": ("pipeline.weights.__main__", "say what a file or folder of weights is, and where it comes from"),
    "cache": ("pipeline.cache.__main__", "list, verify, show and clean up the caches and the store"),
    "exps": ("pipeline.experiments", "list the experiments with what came out, in a small table"),
    "report": ("pipeline.report.__main__", "write one HTML page about what was run"),
}


def main() -> None:
    made = cli.parser("", __doc__)
    tools = made.add_subparsers(dest="tool", metavar="TOOL", required=True, title="tools")
    for name, (_, purpose) in TOOLS.items():
        tools.add_parser(name, help=purpose, add_help=False)
    tool = made.parse_known_args(sys.argv[1:2])[0].tool
    sys.argv = [f"{made.prog} {tool}", *sys.argv[2:]]
    importlib.import_module(TOOLS[tool][0]).main()


if __name__ == "__main__":
    main()

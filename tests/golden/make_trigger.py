"""Make trigger.json: what becomes of the captions of trigger_rule.py in kohya's trainer and in OneTrainer, all that can
come of the draws.

With any Python, a checkout of github.com/kohya-ss/sd-scripts (commit 48d368f) and one of github.com/Nerogar/mgds (commit
3a6994a), in the project's folder: `python -m tests.golden.make_trigger path/to/sd-scripts path/to/mgds`.

Of both the functions are run as they stand there, without the rest of their modules."""

import ast
import csv
import functools
import json
import math
import os
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

from tests.golden.trigger_rule import CASES, DROP

DRAWS = 5000
KOHYA, MGDS = map(Path, sys.argv[1:])


def defined(file: Path, name: str, space: dict):
    """A function or class of a module, which sees `space`."""
    (node,) = [node for node in ast.walk(ast.parse(file.read_text())) if getattr(node, "name", None) == name]
    exec(compile(ast.Module([node], []), file.name, "exec"), space)
    return space[name]


def kohyas(case: dict) -> set[str]:
    space = {"random": random, "re": re, "math": math, "BaseSubset": object}
    process = defined(KOHYA / "library/train_util.py", "process_caption", space)
    subset = {
        "caption_prefix": None, "caption_suffix": None, "caption_dropout_rate": 0, "caption_dropout_every_n_epochs": 0,
        "enable_wildcard": False, "shuffle_caption": True, "token_warmup_step": 0, "token_warmup_min": 1,
        "caption_tag_dropout_rate": DROP, "keep_tokens": 0, "keep_tokens_separator": "", "caption_separator": ",",
        "secondary_separator": None,
    }  # fmt: skip
    subset = SimpleNamespace(**subset | case["kohya"])
    trainer = SimpleNamespace(current_epoch=0, current_step=0, max_train_steps=1, replacements={})
    caption = case.get("caption for kohya", case["caption"])
    return {process(trainer, subset, caption) for _ in range(DRAWS)}


def onetrainers(case: dict) -> set[str]:
    text = {
        "text": case["caption"], "enabled": True, "delimiter": ",", "probability": DROP, "dropout_mode": "RANDOM",
        "special_tags": "", "special_tag_mode": "NONE", "regex_enabled": False, **case["onetrainer"],
    }  # fmt: skip

    def one_of(name: str):
        space = {"re": re, "os": os, "csv": csv, "functools": functools}
        space |= {base: type(base, (), {}) for base in ("PipelineModule", "RandomAccessPipelineModule")}
        module = defined(MGDS / f"src/mgds/pipelineModules/{name}.py", name, space)
        inputs = module.__init__.__code__.co_varnames[1 : module.__init__.__code__.co_argcount]
        made = object.__new__(module)
        for key in inputs:
            setattr(made, key, key.removesuffix("_in_name"))
        made._get_previous_item = lambda variation, name, index: text[name]
        made._get_rand = lambda variation, index: random
        return made

    drop, shuffle = one_of("DropTags"), one_of("ShuffleTags")
    found = set()
    for _ in range(DRAWS):
        text["text"] = case["caption"]
        (text["text"],) = drop.get_item(0, 0).values()
        found |= set(shuffle.get_item(0, 0).values())
    return found


random.seed(0)
made = {"kohya": {name: sorted(kohyas(case)) for name, case in CASES.items()}}
made["onetrainer"] = {name: sorted(onetrainers(case)) for name, case in CASES.items() if "onetrainer" in case}
Path(__file__).with_name("trigger.json").write_text(json.dumps(made, indent=1) + "\n")

"""What each picture is drawn from: its prompt with its own settings or those of all, and which are drawn together."""

from dataclasses import dataclass

from pipeline import params


@dataclass(frozen=True)
class Picture:
    """What one picture is drawn from. Its first noise is a function of (seed, number)."""

    prompt: str
    negative_prompt: str | None  # None: the unconditional text is zeros, as SDXL was trained
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    number: int  # the prompt's place in the list; 0 with a seed of its own, which then means the same in any place


def pictures(sample: params.Sample) -> list[Picture]:
    """One for each prompt, in order."""
    shared = sample.model_dump(include={"width", "height", "steps", "guidance_scale", "seed"})
    found = []
    for number, prompt in enumerate(sample.prompts):
        own = {"prompt": prompt} if isinstance(prompt, str) else prompt.model_dump()
        number = 0 if "seed" in own else number
        found.append(Picture(**({"negative_prompt": None, "number": number} | shared | own)))
    return found


def batches(wanted: list[Picture], size: int) -> list[tuple[list[int], int]]:
    """(indices, how many of them count) of batches whose pictures have one size and number of steps. All batches of one
    size of picture are equally large, so that one graph serves them: short ones repeat their last index."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, one in enumerate(wanted):
        groups.setdefault((one.width, one.height, one.steps), []).append(index)
    found = []
    for (width, height, _), members in groups.items():
        same = [len(others) for (w, h, _), others in groups.items() if (w, h) == (width, height)]
        batch = min(size, max(same))
        for start in range(0, len(members), batch):
            chosen = members[start : start + batch]
            found.append((chosen + chosen[-1:] * (batch - len(chosen)), len(chosen)))
    return found

"""What one look of the doctor found, in a line."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.params import ParamsError
from pipeline.stage import StageError, printable

GOOD, DOUBTFUL, BAD, SKIPPED = "ok", "look", "BAD", "-"


@dataclass(frozen=True)
class Finding:
    name: str  # of what was looked at
    state: str  # GOOD | DOUBTFUL: the run can start | BAD: it cannot | SKIPPED: not looked at
    found: str
    wanted: str = ""  # where it is not good
    do: str = ""  # what to do then

    def __str__(self) -> str:
        text = self.found + (f"; wanted {self.wanted}" if self.wanted else "") + (f". {self.do}" if self.do else "")
        line = " ".join(text.split())  # a message of several lines on one
        return f"{self.state:4}  {self.name:10} {printable(line)}"


def look(name: str, check: Callable[..., Finding | list[Finding]], *arguments: object) -> list[Finding]:
    """What `check(*arguments)` finds; what it raises is a finding too."""
    try:
        found = check(*arguments)
    except (StageError, ParamsError, OSError) as error:
        return [Finding(name, BAD, str(error))]
    except Exception as error:  # a doctor that falls ill says where
        return [Finding(name, BAD, f"could not be looked at: {type(error).__name__}: {error}")]
    return found if isinstance(found, list) else [found]

"""What a trial is asked for: in the environment of the process that trains.

text = Trial("room", folder="runs/a/trial-1", global_batch=64).to_text()
trial = of(os.environ)
"""

import dataclasses
from collections.abc import Mapping

from tfdp import plain

# Where a trial finds it.
VARIABLE = "TFDP_TRIAL"
ROOM, NOISE = "room", "noise"


@dataclasses.dataclass(frozen=True)
class Trial(plain.Facts):
    """One trial.

    Attributes:
        kind: "room": a few steps and a validation step, for memory and throughput. "noise": a
            training, or the begin of one, for the gradient noise scale.
        folder: Where each task writes what it has measured.
        global_batch: Rows of a step.
        tasks: Tasks that train on this machine.
        steps: Of "room".
        seconds: Of "noise", at most, about.
    """

    kind: str
    folder: str
    global_batch: int
    tasks: int = 1
    steps: int = 10
    seconds: float = 60.0


def of(environ: Mapping[str, str]) -> Trial | None:
    """Return the trial that this process is; None where it is none."""
    return Trial.from_variable(environ, VARIABLE)

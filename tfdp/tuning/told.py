"""What the tasks of a trial say: a file of each, in the folder of the trial.

Told("worker:0", replicas=2, records=1437).write_into("runs/a/trial-1")
for one in read("runs/a/trial-1"): print(one.task, one.step_seconds)
"""

import dataclasses
import os
import pathlib

from tfdp import plain
from tfdp.tuning.record import Room

# How the names of the files end.
END = ".told.json"


@dataclasses.dataclass(frozen=True)
class Told(plain.Facts):
    """What a task says of its trial.

    Attributes:
        task: Its name; "" for a process that trains alone.
        replicas: Of all tasks.
        records: To train on; None if nobody has counted them.
        step_seconds: Of one step, without the first ones; 0 of "noise".
        steps: How many ran.
        rooms: What memory it took, by each limit.
        scale: The gradient noise scale of the training; None if it hides.
        over_time: The scale up to so many parts of the training.
        planned_steps: Of the whole training; 0 if nobody knows.
    """

    task: str
    replicas: int
    records: int | None
    step_seconds: float = 0.0
    steps: int = 0
    rooms: tuple[Room, ...] = ()
    scale: float | None = None
    over_time: tuple[float, ...] = ()
    planned_steps: int = 0

    def write_into(self, folder: str | os.PathLike[str]) -> None:
        """Write it into the folder of a trial."""
        self.write(pathlib.Path(folder, f"{self.task.replace(':', '-') or 'alone'}{END}"))


def read(folder: str | os.PathLike[str]) -> list[Told]:
    """Return what the tasks of a trial have written, by their names."""
    files = sorted(pathlib.Path(folder).glob(f"*{END}"))
    return [Told.read(path) for path in files]

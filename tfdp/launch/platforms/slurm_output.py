"""What `srun --label --verbose` says: where its tasks run, which step they are, how they end.

srun = Srun()
srun.take(b"srun: launching StepId=7.0 on host tf1, 2 tasks: [0,2]")
srun.take(b"srun: launch/slurm: _task_finish: Received task exit notification for 1 task of "
          b"StepId=7.0 (status=0x0009).")
srun.take(b"srun: error: tf1: task 2: Killed")
srun.step, srun.places, srun.ends     # "7.0", {0: ("tf1", 0), 2: ("tf1", 1)}, [End(2, "tf1", 137)]
split(b" 2: loss 0.5")                # (2, b"loss 0.5"): a line of a task

The texts are those of Slurm 22.05. What a later one says differently is a line to be shown: then
srun's own exit code counts.
"""

import dataclasses
import re

from tfdp.cluster import ClusterError
from tfdp.launch.platforms import hostlist

_LABEL = re.compile(rb" *([0-9]+):(?: (.*))?", re.DOTALL)
_DAEMON = re.compile(rb"slurmstepd(-\S+)?: (error: )?\*\*\* ")
_LAUNCHING = re.compile(r"srun: launching StepId=(\S+) on host (\S+), [0-9]+ tasks?: \[?([0-9,-]+)")
_STATUS = re.compile(r"srun: .*Received task exit notification .*\(status=0x([0-9a-f]+)\)")
_END = re.compile(r"srun: (?:error: |.*_task_finish: )?(\S+): tasks? ([0-9,-]+): (.+)")
_EXITED = re.compile(r"Exited with exit code ([0-9]+)")
_LOST = re.compile(r"srun: error: (?:Node failure on (\S+)|.*(?:lost|unreachable).*)", re.I)
# What is worth showing of srun's own lines, and of its words those that add nothing.
_SHOWN = re.compile(
    r"srun: (error: |warning: |fatal: |Warning|.*step creation|unrecognized|invalid)"
)


@dataclasses.dataclass(frozen=True)
class End:
    """How a task of a step ended.

    Attributes:
        number: Its SLURM_PROCID.
        host: Where it ran.
        code: Its exit code, 128 + the signal for one that was killed.
        is_signal: Whether it was killed.
        is_forced: Whether the launcher had told srun to kill all by then.
    """

    number: int
    host: str
    code: int
    is_signal: bool = False
    is_forced: bool = False


class Srun:
    """What srun has said so far.

    Attributes:
        step: The number of the step, as in "7.0"; "" before it is known.
        places: The host of each task and its number among all of the step, host by host; by its
            SLURM_PROCID.
        ends: The tasks that have ended, in the order in which that was heard.
        lost_host: A host that has failed; "" for none.
        is_forced: Whether srun was told to kill all; set by the launcher.
        last: The last line that is worth showing.
    """

    def __init__(self) -> None:
        self.step = ""
        self.places: dict[int, tuple[str, int]] = {}
        self.ends: list[End] = []
        self.lost_host = ""
        self.last = ""
        self.is_forced = False
        self._status = 0

    def take(self, line: bytes) -> str:
        """Take a line of srun's own; return what is to be shown of it, "" for nothing."""
        text = line.decode(errors="backslashreplace").rstrip()
        try:
            if found := _LAUNCHING.match(text):
                self.step = found[1]
                for number in hostlist.expand_numbers(found[3]):
                    self.places[int(number)] = (found[2], len(self.places))
                return ""
            if found := _STATUS.match(text):
                self._status = int(found[1], 16)
                return ""
            if found := _END.match(text):
                code, is_signal = self._code(found[3])
                self.ends += [
                    End(int(number), found[1], code, is_signal, self.is_forced)
                    for number in hostlist.expand_numbers(found[2])
                ]
                return ""
        except ClusterError:  # something else that looks alike
            pass
        if found := _LOST.match(text):
            self.lost_host = self.lost_host or found[1] or "a host"
        if _SHOWN.match(text):
            self.last = text.removeprefix("srun: ")
            return text
        return ""

    def _code(self, how: str) -> tuple[int, bool]:
        if how.startswith("Completed"):
            return 0, False
        if found := _EXITED.match(how):
            return int(found[1]), False
        return 128 + (self._status & 0x7F), True


def split(line: bytes) -> tuple[int, bytes] | None:
    """Return whose line that is, and the line itself; None for one of srun's own."""
    found = _LABEL.fullmatch(line)
    return (int(found[1]), found[2] or b"") if found else None


def is_slurms(line: bytes) -> bool:
    """Whether Slurm's daemon beside a task has written that line, and not the task."""
    return _DAEMON.match(line) is not None


def culprit(ends: list[End]) -> End | None:
    """Return the end that explains the others; None where all went well.

    A task that has lost another is a consequence, also where srun tells its end first. When one
    fails, Slurm ends the others with SIGTERM, and with SIGKILL half a minute later.
    """
    failed = [end for end in ends if end.code]
    for number, end in enumerate(failed):
        if not (end.code == 138 or end.is_forced or (end.code == 143 and number)):
            return end
    return failed[0] if failed else None

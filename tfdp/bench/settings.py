"""What is asked of a bench: --bench of `tfdp launch`, `tfdp bench`, `tfdp.callbacks.Bench`.

text = Settings("runs/a", then="continue").to_text()    # for the environment of each task
settings = Settings.from_variable(os.environ, VARIABLE)
"""

import dataclasses

from tfdp import plain
from tfdp.error import Error

# Where a task finds them.
VARIABLE = "TFDP_BENCH"
ENDS, CONTINUES = "end", "continue"


@dataclasses.dataclass(frozen=True)
class Settings(plain.Facts):
    """One bench.

    Attributes:
        folder: Where bench.json and the figure go; "" for nowhere.
        then: "end": the run ends with the report; "continue": it trains as without a bench.
        apply: Whether the best remedy is tried.
        rounds: How often each run is measured.
        seconds: Of one timed run, about.

    Raises:
        Error: For a value that is not allowed.
    """

    folder: str = ""
    then: str = ENDS
    apply: bool = False
    rounds: int = 5
    seconds: float = 0.4

    def __post_init__(self) -> None:
        if self.then not in (ENDS, CONTINUES):
            raise Error(f"--bench={self.then}: write --bench, or --bench=continue.")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise Error(f"Bench(rounds={self.rounds!r}): use a whole number of 1 or more.")
        if not self.seconds > 0:
            raise Error(f"Bench(seconds={self.seconds!r}): use a positive number of seconds.")

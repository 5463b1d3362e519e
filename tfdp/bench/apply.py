"""A remedy tried: steps of the real loop before and after it take turns.

trial = tried(bench, proposals)     # None where none of them can be tried here
"""

import functools
from collections.abc import Callable, Sequence

from tfdp.bench import measure, record, verdict
from tfdp.fit import Runs

# A prediction that is further off is withdrawn.
BAND = 0.15


def tried(bench: measure.Bench, proposals: Sequence[verdict.Proposal]) -> record.Trial | None:
    """Try the first proposal that can be tried; in a cluster every task calls it.

    Args:
        bench: What has measured the fit.
        proposals: The best first.

    Returns:
        What came out.
    """
    for proposal in proposals:
        apply = _WAYS.get(proposal.name)
        other = apply(bench) if apply else None
        if other is not None:
            return _trial(bench, proposal, other)
    return None


def _trial(bench: measure.Bench, proposal: verdict.Proposal, other: Runs) -> record.Trial:
    rows = 2.0 if proposal.name == "larger_batch" else 1.0
    limits = {"before": bench.limit, "after": bench.limit}
    if proposal.name == "steps_per_execution":
        limits["after"] = _MANY
    runs, steps = {"before": bench.runs, "after": other}, {}
    rounds: dict[str, list[float]] = {"before": [], "after": []}
    for number in range(bench.effort.rounds + 1):
        for name, which in runs.items():
            bench.limit = limits[name]
            with bench.opened(which, first=number == 0):
                if number == 0:
                    steps[name] = bench.steps_for(which.real)
                else:
                    rounds[name].append(bench.real(which, steps[name]))
    bench.limit = limits["before"]
    measured = {name: record.Timing.of(times) for name, times in rounds.items()}
    times = {name: bench.of_all(timing) for name, timing in measured.items()}
    first, second = (
        max(times[name], key=lambda timing: timing.median_seconds) for name in ("before", "after")
    )
    # Each round compares what ran at the same time.
    gain = rows * first.median_seconds / second.median_seconds
    holds = abs(gain / proposal.gain - 1) <= BAND
    return record.Trial(proposal.name, proposal.gain, gain, first, second, holds)


_MANY = 20


def _on_the_wire(kind: str, bench: measure.Bench) -> Runs:
    return bench.runs.changed(communication=measure.compressed(bench.rehearsal, kind))


def _larger(bench: measure.Bench) -> Runs | None:
    rows = 2 * bench.runs.rows
    if not bench.runs.feed.split.by_rows:  # each process has batches of its own
        return None
    return bench.on(lambda dataset: dataset.rebatch(rows, drop_remainder=True))


_WAYS: dict[str, Callable[[measure.Bench], Runs | None]] = {
    "parallel_input": lambda bench: bench.on(measure.in_parallel),
    "cache": lambda bench: bench.on(bench.cached),
    "float16_wire": functools.partial(_on_the_wire, "float16"),
    "bfloat16_wire": functools.partial(_on_the_wire, "bfloat16"),
    "jit_compile": lambda bench: bench.runs.changed(jit=True),
    "steps_per_execution": lambda bench: bench.runs.changed(limit=_MANY),
    "larger_batch": _larger,
}

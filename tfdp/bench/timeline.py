"""One timeline of all workers, for Perfetto: steps, input, computing, all-reduce. Pure.

    lanes = lanes_of(spans)                     # of one worker's trace
    text = merged({"worker:0": lanes, "worker:1": ...})     # Chrome's trace events, JSON

ui.perfetto.dev and chrome://tracing open it. The clocks of machines differ: no worker can leave an
all-reduce before the last one has entered it, and all leave it at about the same time. These
meeting points are laid upon one another.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence

# What a carrier writes around the sum of a step's packs: see fit/replicas/transport.py.
ALL_REDUCE = "tfdp::all_reduce"
STEP = "train"
LANES = ("steps", "waits for input", "computing", "all-reduce", "input made ahead")
_COLLECTIVES = ("CollectiveReduce", "NcclAllReduce", "ncclDevKernel_AllReduce", "ncclKernel_All")


@dataclasses.dataclass(frozen=True)
class Span:
    """One event of a trace.

    Attributes:
        thread: The name of its thread, or of a GPU's stream.
        name: Of the event.
        begin, end: In nanoseconds since 1970, by the clock of its machine.
        step: The number of the step, of the events that mark steps; else 0.
        on_device: Whether a GPU did it.
    """

    thread: str
    name: str
    begin: int
    end: int
    step: int = 0
    on_device: bool = False


Piece = tuple[int, int, str]
"""(begin, end, name)"""


def lanes_of(spans: Iterable[Span]) -> dict[str, list[Piece]]:
    """Return what one worker did, by lane, in order; computing and input as one piece each."""
    found: dict[str, list[Piece]] = {name: [] for name in LANES}
    for span in spans:
        lane = _lane(span)
        if lane == "steps":
            found[lane].append((span.begin, span.end, f"step {span.step}"))
        elif lane:
            found[lane].append((span.begin, span.end, lane))
    apart = ("steps", "all-reduce")  # each of them is a meeting point
    return {name: _joined(pieces, name not in apart) for name, pieces in found.items()}


def _lane(span: Span) -> str:
    if span.name == STEP and span.step:
        return "steps"
    if span.name == ALL_REDUCE or any(one in span.name for one in _COLLECTIVES):
        return "all-reduce"
    if span.on_device:
        return "computing"
    if span.thread.startswith("tf_data_iterator_get_next"):
        return "waits for input" if span.name == "IteratorGetNextOp::DoCompute" else ""
    if span.thread.startswith("tf_data"):
        return "input made ahead" if span.name.startswith("Iterator::") else ""
    # Operations are called "NAME:KIND"; "A::B" is the machinery around them. PyFunc is Python's:
    # a carrier's, which is a wait.
    parts = span.name.rsplit(":", 1)
    is_operation = len(parts) == 2 and not parts[0].endswith(":") and parts[1].isidentifier()
    if is_operation and "PyFunc" not in parts[1] and "IteratorGetNext" not in parts[1]:
        return "computing"
    return ""


def _joined(pieces: Sequence[Piece], joins: bool) -> list[Piece]:
    """Return pieces in order; those that overlap, or nearly touch, become one."""
    ordered = sorted(pieces)
    if not joins:
        return ordered
    found: list[Piece] = []
    for begin, end, name in ordered:
        if found and begin <= found[-1][1] + 2_000:  # 2 us
            found[-1] = (found[-1][0], max(end, found[-1][1]), name)
        else:
            found.append((begin, end, name))
    return found


def offsets(workers: Mapping[str, Mapping[str, Sequence[Piece]]]) -> dict[str, int]:
    """Return the nanoseconds that each worker's clock is ahead of the first one's.

    Of the ends of all-reduces, the k-th of each worker with the k-th of the first; where there are
    none (or not as many) of the ends of steps, which end with one.
    """
    names = list(workers)
    found = {names[0]: 0}
    for name in names[1:]:
        found[name] = 0
        for lane in ("all-reduce", "steps"):
            first, other = workers[names[0]][lane], workers[name][lane]
            if first and len(first) == len(other):
                apart = [b[1] - a[1] for a, b in zip(first, other, strict=True)]
                found[name] = round(statistics.median(apart))
                break
    return found


def merged(workers: Mapping[str, Mapping[str, Sequence[Piece]]]) -> str:
    """Return one timeline as Chrome's trace events.

    Args:
        workers: The lanes of each, by its name.
    """
    ahead = offsets(workers)
    begins = [
        piece[0] - ahead[name] for name, lanes in workers.items() for one in lanes.values()
        for piece in one
    ]  # fmt: skip
    origin = min(begins, default=0)
    events: list[dict] = []
    for process, (name, lanes) in enumerate(workers.items(), 1):
        events.append(_named("process_name", process, 0, name or "this process"))
        for thread, lane in enumerate(LANES, 1):
            events.append(_named("thread_name", process, thread, lane))
            order = {"name": "thread_sort_index", "ph": "M", "pid": process, "tid": thread}
            events.append({**order, "args": {"sort_index": thread}})
            events += [
                {
                    "name": text,
                    "cat": lane,
                    "ph": "X",
                    "pid": process,
                    "tid": thread,
                    "ts": (begin - ahead[name] - origin) / 1e3,
                    "dur": (end - begin) / 1e3,
                }
                for begin, end, text in lanes.get(lane, ())
            ]
    clocks = {name: offset / 1e3 for name, offset in ahead.items()}
    told = {"clocks ahead of the first worker's, in us": clocks}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}) + "\n"


def _named(kind: str, process: int, thread: int, name: str) -> dict:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}

"""Who reads what: the shares of the input pipelines, their batches, and why.

    files = [File("a.tfrecord", records=1000), File("b.tfrecord", records=900)]
    plan = make(files, pipelines=2, global_batch_size=64)
    plan.policy, plan.steps             # "FILE", 32
    plan.shares[1].files                # (1,): worker 1 reads b.tfrecord
    print("\n".join(plan_report.lines(plan, "train")))

A pipeline is what feeds one worker, whatever its number of replicas. There are three ways to share:

- "files" (policy FILE): each pipeline has files of its own;
- "records" (HINT, or DATA): each reads all files, and pipeline p of N keeps the records p, p + N,
  p + 2 N, ... of the sequence: HINT before they are decoded, DATA after that;
- "slices": pipeline p keeps the rows from floor(p * rows / N) up to floor((p + 1) * rows / N) of
  each global batch, so that the global batches are the same for any number of pipelines. A source
  that is read by index (policy OFF: tf.data shards nothing) reads those rows alone; a sequential
  one (HINT) reads all records and decodes its own.

Every pipeline has the same number of batches. With ragged="exact" each record comes once: where a
share is shorter than the others, its last batches hold fewer rows, or none (fit weights by rows).
With "drop" all batches are full. Nothing here touches a file.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfdp import batching, config
from tfdp.error import Error

POLICIES = ("FILE", "DATA", "HINT", "OFF")
# A pipeline with 10% more records than the mean makes the others wait so long: then HINT.
IMBALANCE_LIMIT = 1.1


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the input.

    Attributes:
        name: Its path.
        records: How many of its records are in the input; None while nobody has counted.
        first: Number of the first of them in the file.
        bytes: Its size; 0 where that says nothing.
    """

    name: str
    records: int | None = None
    first: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Share:
    """What one pipeline has of an epoch.

    Attributes:
        pipeline: Its number, from 0.
        files: Which files it opens: places in Plan.files.
        batch: Rows of its full batches.
        records: Records that are its own; None if unknown.
        dropped: Records of them that no batch holds; None if unknown.
        empty: Batches at its end that hold no row; None if unknown.
        first: (file, record number) of the first record, in the order of the files.
        last: The same of the last record.
        bytes: What it reads of the files, as far as their sizes are known.
    """

    pipeline: int
    files: tuple[int, ...]
    batch: int
    records: int | None
    dropped: int | None
    empty: int | None
    first: tuple[str, int] | None
    last: tuple[str, int] | None
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shares of all pipelines.

    Attributes:
        policy: One of POLICIES.
        how: "files", "records" or "slices".
        ragged: One of config.RAGGED.
        global_batch_size: Rows of a step, over all pipelines.
        files: The input.
        steps: Batches of every pipeline in an epoch; None if unknown.
        shares: One for each pipeline.
        reason: Why this policy.
        rejected: The alternative, and why it was not taken; "" where there is none.
    """

    policy: str
    how: str
    ragged: str
    global_batch_size: int
    files: tuple[File, ...]
    steps: int | None
    shares: tuple[Share, ...]
    reason: str
    rejected: str

    @property
    def records(self) -> int | None:
        """Records of the input; None if unknown."""
        return _total(self.files)

    @property
    def dropped(self) -> int | None:
        """Records that no batch of an epoch holds; None if unknown."""
        counts = [share.dropped for share in self.shares]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def imbalance(self) -> float | None:
        """Records of the largest share over the mean of all; bytes where nobody has counted."""
        return _imbalance([share.records for share in self.shares]) or _imbalance(
            [share.bytes for share in self.shares]
        )

    def json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        plain = dataclasses.asdict(self)
        return {**plain, "dropped": self.dropped, "imbalance": self.imbalance}


def make(
    files: Sequence[File],
    pipelines: int,
    global_batch_size: int,
    *,
    policy: str = "auto",
    order: str = "shards",
    ragged: str = "exact",
    by_index: bool = False,
    may_idle: bool = False,
) -> Plan:
    """Plan an epoch.

    Args:
        files: The input, in order.
        pipelines: How many there are: one for each worker.
        global_batch_size: Rows of a step, over all pipelines.
        policy: One of POLICIES, or "auto".
        order: "global" if the global batches are to be the same for any number of pipelines.
        ragged: "exact" or "drop".
        by_index: Whether the source reads single records by their number.
        may_idle: Whether a pipeline may have no record at all (an evaluation of a few records).

    Raises:
        Error: If the batch does not divide over the pipelines.
        Error: If a pipeline would starve, records would be read twice, or the end of an
            epoch would differ between pipelines; with what to do.
    """
    assert policy in (*POLICIES, "auto")
    assert order in config.ORDERS
    assert ragged in config.RAGGED
    files = tuple(files)
    total = _total(files)
    batch = batching.Batch(global_batch_size, pipelines).per_worker
    if total == 0 or not files:
        raise Error("The input holds no record.")
    if total is not None and total < pipelines and not may_idle:
        raise Error(
            f"{total} records are too few for {pipelines} pipelines: use up to {total} workers."
        )
    chosen, how, reason, rejected = _choose(files, pipelines, policy, order, by_index)
    if total is None and pipelines > 1 and (how == "slices" or ragged == "drop"):
        what = "order='global'" if how == "slices" else "ragged='drop'"
        raise Error(
            f"{what} needs the number of records of every file, and {_uncounted(files)}: let them "
            "be counted (config.data.count=True)."
        )
    shares = _shares(files, pipelines, batch, how, by_index)
    starved = [share.pipeline for share in shares if share.records == 0 or not share.files]
    if starved and not may_idle:
        raise Error(
            f"Policy {chosen} leaves {_pipelines(starved)} without a record: "
            f"{len(files)} files for {pipelines} pipelines. Use policy auto, which shards by "
            f"record then, or rewrite the files: tfdp reshard --shards={2 * pipelines}."
        )
    steps = _steps(shares, how, ragged, total, global_batch_size)
    if steps == 0:
        raise Error(
            f"ragged='drop' drops all {total} records: global_batch_size={global_batch_size} is "
            "more than there are. Use a smaller one, or ragged='exact'."
        )
    plan = Plan(
        chosen, how, ragged, global_batch_size, files, steps, tuple(shares), reason, rejected
    )
    return dataclasses.replace(plan, shares=tuple(_ends(plan, share) for share in shares))


def slice_of(rows: Any, pipeline: Any, pipelines: Any) -> tuple[Any, Any]:
    """Return where a pipeline's rows of a global batch begin and end (also as tensors)."""
    return pipeline * rows // pipelines, (pipeline + 1) * rows // pipelines


def _choose(
    files: tuple[File, ...], pipelines: int, policy: str, order: str, by_index: bool
) -> tuple[str, str, str, str]:
    """Return policy, way, reason, and what was rejected."""
    if pipelines == 1:
        return "OFF", "slices", "one pipeline reads all", ""
    if by_index:
        if policy not in ("auto", "OFF"):
            raise Error(
                f"policy='{policy.lower()}' is for sources that are read from front to back; this "
                "one is read by index, each pipeline its own records. Use policy 'auto'."
            )
        why = "each pipeline reads its rows of every global batch by index"
        return "OFF", "slices", why, "not FILE or HINT: reading by index reads no record twice"
    if policy == "OFF":
        raise Error(
            f"policy='off' lets each of {pipelines} pipelines train on every record. Use 'auto', "
            "or 'off' with a function of your own that shards."
        )
    size = sum(file.bytes for file in files)
    much = f"all {size / 1e6:,.1f} MB" if size else "everything"
    if order == "global":
        if policy not in ("auto", "HINT"):
            raise Error(
                f"policy='{policy.lower()}' cannot keep order='global'. Use policy 'auto', or "
                "order 'shards'."
            )
        why = f"order 'global': each pipeline reads {much} and decodes its rows of every batch"
        return "HINT", "slices", why, "not FILE: its global batches depend on the workers"
    dealt = _deal(files, pipelines)
    against = ""
    if len(files) < pipelines:
        against = f"{len(files)} file{'s' * (len(files) != 1)} would starve a pipeline"
    else:
        weights = _weights(files)
        spread = _imbalance([sum(weights[at] for at in own) for own in dealt]) or 1.0
        if spread > IMBALANCE_LIMIT:
            against = f"the largest share of files would be {spread:.2f} times the mean"
    by_file = "each pipeline reads files of its own"
    by_record = f"each pipeline reads {much} and keeps every {_ordinal(pipelines)} record"
    if policy == "FILE" or (policy == "auto" and not against):
        rejected = f"not HINT: each pipeline would read {much}"
        return "FILE", "files", by_file, rejected if policy == "auto" else "as the config says"
    if policy == "auto":
        fix = f"tfdp reshard --shards={2 * pipelines} makes even files"
        return "HINT", "records", f"{by_record}, before decoding", f"not FILE: {against}; {fix}"
    when = "before decoding" if policy == "HINT" else "after decoding all"
    return policy, "records", f"{by_record}, {when}", "as the config says"


def _shares(
    files: tuple[File, ...], pipelines: int, batch: int, how: str, by_index: bool
) -> list[Share]:
    total, size = _total(files), sum(file.bytes for file in files)
    shares = []
    for pipeline, own in enumerate(_deal(files, pipelines)):
        records: int | None
        if how == "files":
            records, read = _total([files[at] for at in own]), sum(files[at].bytes for at in own)
        else:
            own = tuple(range(len(files)))
            records, read = None, size // pipelines if by_index else size
            if total is not None and how == "records":
                records = len(range(pipeline, total, pipelines))
            elif total is not None:
                low, high = slice_of(total % (batch * pipelines), pipeline, pipelines)
                records = total // (batch * pipelines) * batch + high - low
        shares.append(Share(pipeline, own, batch, records, None, None, None, None, read))
    return shares


def _steps(
    shares: list[Share], how: str, ragged: str, total: int | None, global_batch_size: int
) -> int | None:
    if total is None:
        return None
    if how == "slices":
        return total // global_batch_size if ragged == "drop" else -(-total // global_batch_size)
    if ragged == "drop":
        return min((share.records or 0) // share.batch for share in shares)
    return max(-(-(share.records or 0) // share.batch) for share in shares)


def _ends(plan: Plan, share: Share) -> Share:
    """Return a share with what its batches leave out, and its first and last record."""
    if share.records is None or plan.steps is None:
        return share
    held = min(share.records, plan.steps * share.batch)
    if plan.how == "slices" and plan.ragged == "exact":
        held = share.records
    empty = plan.steps - -(-held // share.batch)
    if share.records == 0:
        return dataclasses.replace(share, dropped=0, empty=empty)
    total = plan.records or 0
    if plan.how == "files":
        opened = [plan.files[at] for at in share.files if plan.files[at].records]
        first = (opened[0].name, opened[0].first)
        last = (opened[-1].name, opened[-1].first + (opened[-1].records or 1) - 1)
    else:
        if plan.how == "records":
            ends = range(share.pipeline, total, len(plan.shares))
            places = (ends[0], ends[-1])
        else:
            # The last batch may hold no row of this pipeline, the one before it does.
            runs = [_slice(plan, share.pipeline, step) for step in (0, plan.steps - 1)]
            if plan.steps > 1 and not runs[-1]:
                runs[-1] = _slice(plan, share.pipeline, plan.steps - 2)
            runs = [run for run in runs if run]
            places = (runs[0][0], runs[-1][-1])
        first, last = (_named(plan.files, place) for place in places)
    return dataclasses.replace(
        share, dropped=share.records - held, empty=empty, first=first, last=last
    )


def _slice(plan: Plan, pipeline: int, step: int) -> range:
    start = step * plan.global_batch_size
    rows = min(plan.global_batch_size, (plan.records or 0) - start)
    low, high = slice_of(rows, pipeline, len(plan.shares))
    return range(start + low, start + high)


def _deal(files: tuple[File, ...], pipelines: int) -> list[tuple[int, ...]]:
    """Deal out the files, the largest first, each to the pipeline that has least so far."""
    weights = _weights(files)
    loads, dealt = [0] * pipelines, [[] for _ in range(pipelines)]  # type: ignore[var-annotated]
    for at in sorted(range(len(files)), key=lambda at: (-weights[at], at)):
        least = min(range(pipelines), key=lambda p: (loads[p], len(dealt[p]), p))
        loads[least] += weights[at]
        dealt[least].append(at)
    return [tuple(sorted(own)) for own in dealt]


def _weights(files: tuple[File, ...]) -> list[int]:
    """Return the records of each file; its bytes where not all are counted."""
    if _total(files) is not None:
        return [file.records or 0 for file in files]
    return [file.bytes or 1 for file in files]


def _imbalance(counts: Sequence[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    if len(known) < len(counts) or not sum(known):
        return None
    return max(known) * len(known) / sum(known)


def _total(files: Sequence[File]) -> int | None:
    counts = [file.records for file in files]
    return None if None in counts else sum(count or 0 for count in counts)


def _named(files: Sequence[File], place: int) -> tuple[str, int]:
    for file in files:
        if place < (file.records or 0):
            return file.name, file.first + place
        place -= file.records or 0
    raise AssertionError("a place behind the end")


def _uncounted(files: Sequence[File]) -> str:
    first = next(file.name for file in files if file.records is None)
    return f"the records of {first} are not counted"


def _pipelines(numbers: Sequence[int]) -> str:
    word = "pipeline" if len(numbers) == 1 else "pipelines"
    return f"{word} {', '.join(map(str, numbers))}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 <= number % 100 <= 13 else ending}"

import collections
import itertools
import random

import pytest

from tfdp import config
from tfdp.data import plan_report, sharding
from tfdp.data.sharding import File
from tfdp.error import Error


def files_of(*counts, size=0):
    return [File(f"{chr(97 + n)}.tfrecord", count, bytes=size) for n, count in enumerate(counts)]


def batches_of(plan):
    """The batches of every pipeline, unshuffled: places in the sequence of all files."""
    return [list(_batches(plan, share)) for share in plan.shares]


def _batches(plan, share):
    pipelines = len(plan.shares)
    if plan.how == "slices":
        for start in range(0, plan.steps * plan.global_batch_size, plan.global_batch_size):
            rows = min(plan.global_batch_size, plan.records - start)
            low, high = sharding.slice_of(rows, share.pipeline, pipelines)
            yield list(range(start + low, start + high))
        return
    own = list(range(share.pipeline, plan.records, pipelines))
    if plan.how == "files":
        ends = list(itertools.accumulate((file.records for file in plan.files), initial=0))
        own = [n for at in share.files for n in range(ends[at], ends[at + 1])]
    for step in range(plan.steps):
        yield own[step * share.batch : (step + 1) * share.batch]


# -- tables to check by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "pipelines", "options", "policy", "expected"),
    [
        # A file for each of two pipelines.
        ((4, 4), 2, {}, "FILE", [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
        # The largest first, each to the pipeline that has least: a=6, then b + c = 3 + 3.
        (
            (3, 6, 3),
            2,
            {},
            "FILE",
            [[[3, 4], [5, 6], [7, 8]], [[0, 1], [2, 9], [10, 11]]],
        ),
        # One file for two pipelines: every second record.
        ((5,), 2, {}, "HINT", [[[0, 2], [4]], [[1, 3], []]]),
        ((5,), 2, {"ragged": "drop"}, "HINT", [[[0, 2]], [[1, 3]]]),
        # 4 and 2 records: the larger share is 1.33 times the mean, more than 1.1.
        ((4, 2), 2, {}, "HINT", [[[0, 2], [4]], [[1, 3], [5]]]),
        # Insisting on files: the shorter share ends with a batch without a row.
        ((4, 2), 2, {"policy": "FILE"}, "FILE", [[[0, 1], [2, 3]], [[4, 5], []]]),
        # Global batches 0-3, 4-6: each pipeline has its rows of them.
        ((7,), 2, {"order": "global"}, "HINT", [[[0, 1], [4]], [[2, 3], [5, 6]]]),
        ((7,), 2, {"by_index": True}, "OFF", [[[0, 1], [4]], [[2, 3], [5, 6]]]),
        ((5,), 2, {"by_index": True}, "OFF", [[[0, 1], []], [[2, 3], [4]]]),
        ((7,), 1, {}, "OFF", [[[0, 1, 2, 3], [4, 5, 6]]]),
    ],
)
def test_who_reads_which_records(counts, pipelines, options, policy, expected):
    plan = sharding.make(files_of(*counts), pipelines, 4, **options)
    assert plan.policy == policy
    assert batches_of(plan) == expected
    assert plan.steps == len(expected[0])


def test_what_a_plan_says_of_itself():
    plan = sharding.make(files_of(1000, 1000, 990, 1000, size=10**6), 2, 100)
    assert plan_report.lines(plan, "train") == [
        "Input train: policy FILE for 2 pipelines, 4 files, 3,990 records: each pipeline reads "
        "files of its own.",
        "Input train: 40 batches of 50 for each pipeline, every record once, imbalance 1.00.",
        "Input train: not HINT: each pipeline would read all 4.0 MB.",
    ]
    assert plan.shares[1] == sharding.Share(
        pipeline=1,
        files=(1, 2),
        batch=50,
        records=1990,
        dropped=0,
        empty=0,
        first=("b.tfrecord", 0),
        last=("c.tfrecord", 989),
        bytes=2 * 10**6,
    )
    assert plan.json()["imbalance"] == pytest.approx(2000 / 1995)


@pytest.mark.parametrize(
    ("counts", "pipelines", "options", "lines"),
    [
        (
            (10,),
            4,
            {},
            [
                "policy HINT for 4 pipelines, 1 file, 10 records: each pipeline reads everything "
                "and keeps every 4th record, before decoding.",
                "3 batches of 1 for each pipeline, every record once, 2 batches without a row, "
                "imbalance 1.20.",
                "not FILE: 1 file would starve a pipeline; tfdp reshard --shards=8 makes even "
                "files.",
            ],
        ),
        (
            (10, 20),
            2,
            {"ragged": "drop"},
            [
                "policy HINT for 2 pipelines, 2 files, 30 records: each pipeline reads everything "
                "and keeps every 2nd record, before decoding.",
                "7 batches of 2 for each pipeline, 2 records dropped, imbalance 1.00.",
                "not FILE: the largest share of files would be 1.33 times the mean; tfdp reshard "
                "--shards=4 makes even files.",
            ],
        ),
        (
            (None, None),
            2,
            {},
            [
                "policy FILE for 2 pipelines, 2 files, not counted: each pipeline reads files of "
                "its own.",
                "batches of 2, as many as the data holds, how they end is not known.",
                "not HINT: each pipeline would read everything.",
            ],
        ),
        (
            (10,),
            1,
            {},
            [
                "policy OFF for 1 pipeline, 1 file, 10 records: one pipeline reads all.",
                "3 batches of 4 for each pipeline, every record once, imbalance 1.00.",
                "there is no alternative to choose from.",
            ],
        ),
    ],
)
def test_the_decision_and_what_it_rejected(counts, pipelines, options, lines):
    plan = sharding.make(files_of(*counts), pipelines, 4, **options)
    assert plan_report.lines(plan, "x") == [f"Input x: {line}" for line in lines]


@pytest.mark.parametrize(
    ("counts", "pipelines", "batch", "options", "message"),
    [
        (
            (8,),
            2,
            4,
            {"policy": "FILE"},
            "Policy FILE leaves pipeline 1 without a record: 1 files for 2 pipelines. Use policy "
            "auto, which shards by record then, or rewrite the files: tfdp reshard --shards=4.",
        ),
        ((3,), 4, 4, {}, "3 records are too few for 4 pipelines: use up to 3 workers."),
        ((), 1, 4, {}, "The input holds no record."),
        ((0, 0), 1, 4, {}, "The input holds no record."),
        (
            (8, 8),
            2,
            4,
            {"policy": "OFF"},
            "policy='off' lets each of 2 pipelines train on every record. Use 'auto', or 'off' "
            "with a function of your own that shards.",
        ),
        (
            (8, 8),
            2,
            4,
            {"policy": "FILE", "order": "global"},
            "policy='file' cannot keep order='global'. Use policy 'auto', or order 'shards'.",
        ),
        (
            (8, 8),
            2,
            4,
            {"policy": "HINT", "by_index": True},
            "policy='hint' is for sources that are read from front to back; this one is read by "
            "index, each pipeline its own records. Use policy 'auto'.",
        ),
        (
            (8, None),
            2,
            4,
            {"order": "global"},
            "order='global' needs the number of records of every file, and the records of "
            "b.tfrecord are not counted: let them be counted (config.data.count=True).",
        ),
        (
            (8, None),
            2,
            4,
            {"ragged": "drop"},
            "ragged='drop' needs the number of records of every file, and the records of "
            "b.tfrecord are not counted: let them be counted (config.data.count=True).",
        ),
        (
            (5, 5),
            2,
            100,
            {"ragged": "drop"},
            "ragged='drop' drops all 10 records: global_batch_size=100 is more than there are. Use "
            "a smaller one, or ragged='exact'.",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_what_to_do(
    counts, pipelines, batch, options, message
):
    with pytest.raises(Error) as raised:
        sharding.make(files_of(*counts), pipelines, batch, **options)
    assert str(raised.value) == message


def test_a_batch_that_does_not_divide_over_the_pipelines():
    with pytest.raises(Error) as raised:
        sharding.make(files_of(80), 4, 30)
    assert str(raised.value) == (
        "global_batch_size=30 does not divide over 4 replicas. Use 28 or 32, or change the workers."
    )


def test_a_few_records_to_evaluate_may_leave_a_pipeline_idle():
    plan = sharding.make(files_of(3), 4, 8, may_idle=True)
    assert batches_of(plan) == [[[0]], [[1]], [[2]], [[]]]


# -- every combination -----------------------------------------------------------------------------


def shapes_of_files():
    """(name, records of each file): few, many, even, uneven, with an empty one."""
    dice = random.Random(5)
    yield "one", (97,)
    yield "two even", (50, 50)
    yield "three uneven", (7, 90, 31)
    yield "eight even", (12,) * 8
    yield "eight random", tuple(dice.randint(1, 40) for _ in range(8))
    yield "one is empty", (30, 0, 30, 31)
    yield "seventeen", tuple(dice.randint(8, 9) for _ in range(17))


COMBINATIONS = [
    (name, counts, pipelines, batch, policy, order, ragged)
    for (name, counts), pipelines, batch, (policy, order), ragged in itertools.product(
        shapes_of_files(),
        (1, 2, 3, 4, 8),
        (24, 72, 240),
        (
            ("auto", "shards"),
            ("auto", "global"),
            ("FILE", "shards"),
            ("HINT", "shards"),
            ("DATA", "shards"),
            ("index", "global"),
        ),
        config.RAGGED,
    )
]


def test_there_are_enough_combinations():
    assert len(COMBINATIONS) == 7 * 5 * 3 * 6 * 2 == 1260


@pytest.mark.parametrize("pipelines", [1, 2, 3, 4, 8])
def test_each_record_once_equal_batches_and_nobody_starves(pipelines):
    made, refused = 0, []
    for name, counts, n, batch, policy, order, ragged in COMBINATIONS:
        if n != pipelines:
            continue
        what = (name, batch, policy, order, ragged)
        total = sum(counts)
        try:
            plan = sharding.make(
                files_of(*counts),
                n,
                batch,
                policy="auto" if policy == "index" else policy,
                order=order,
                ragged=ragged,
                by_index=policy == "index",
            )
        except Error as error:
            refused.append((what, str(error)))
            continue
        made += 1
        batches = batches_of(plan)
        trained = [record for own in batches for rows in own for record in rows]
        times = collections.Counter(trained)

        # Each record once, or dropped, and then counted.
        assert set(times.values()) == {1}, what
        assert set(times) <= set(range(total)), what
        assert len(trained) + plan.dropped == total, what
        # Equal batches, each of its size, and nobody starves.
        assert [len(own) for own in batches] == [plan.steps] * n, what
        assert all(own[0] for own in batches), what
        for share, own in zip(plan.shares, batches, strict=True):
            sizes = [len(rows) for rows in own]
            assert sum(sizes) == share.records - share.dropped, what
            assert sum(size == 0 for size in sizes) == share.empty, what
            # Full batches, then one that may be ragged, then empty ones.
            assert sizes == sorted(sizes, reverse=True), what
            assert len([size for size in sizes if 0 < size < share.batch]) <= 1, what
            assert max(sizes) <= share.batch, what
        if ragged == "exact":
            assert plan.dropped == 0, what
        else:
            assert all(len(rows) == s.batch for s, own in zip(plan.shares, batches, strict=True)
                       for rows in own), what  # fmt: skip
        assert sum(share.batch for share in plan.shares) == batch, what
        # The ends that are shown are those of the sequence.
        for share, own in zip(plan.shares, batches, strict=True):
            if ragged == "exact":
                names = [(f.name, k) for f in plan.files for k in range(f.records)]
                mine = sorted(record for rows in own for record in rows)
                assert (share.first, share.last) == (names[mine[0]], names[mine[-1]]), what

    # What was refused was refused for a reason that stands.
    for (name, batch, policy, _, ragged), message in refused:
        counts = dict(shapes_of_files())[name]
        holding = sum(count > 0 for count in counts)
        too_few_files = policy == "FILE" and holding < pipelines
        share = total_of_smallest_share(counts, pipelines, policy)
        nothing_left = ragged == "drop" and share < batch // pipelines
        assert too_few_files or nothing_left, (name, batch, policy, ragged, message)
    assert made > 100, made


def total_of_smallest_share(counts, pipelines, policy):
    if policy != "FILE":
        return sum(counts) // pipelines
    loads = [0] * pipelines
    for count in sorted(counts, reverse=True):
        loads[loads.index(min(loads))] += count
    return min(loads)


@pytest.mark.parametrize("ragged", config.RAGGED)
@pytest.mark.parametrize("by_index", [True, False])
@pytest.mark.parametrize("records", [96, 97, 101, 64, 9])
def test_the_global_batches_are_the_same_lists_for_any_number_of_pipelines(
    records, by_index, ragged
):
    if ragged == "drop" and records < 24:
        records += 24
    sequences = {}
    for pipelines in (1, 2, 3, 4, 8):
        plan = sharding.make(
            files_of(records),
            pipelines,
            24,
            order="global",
            by_index=by_index,
            ragged=ragged,
        )
        rows = zip(*batches_of(plan), strict=True)
        sequences[pipelines] = [list(itertools.chain(*parts)) for parts in rows]
    whole = [list(range(k, min(k + 24, records))) for k in range(0, records, 24)]
    if ragged == "drop":
        whole = [rows for rows in whole if len(rows) == 24]
    assert list(sequences.values()) == [whole] * 5


@pytest.mark.parametrize(
    ("files", "pipelines", "rows", "expected"),
    [(0, 1, 5, (0, 5)), (0, 3, 7, (0, 2)), (1, 3, 7, (2, 4)), (2, 3, 7, (4, 7)), (1, 2, 0, (0, 0))],
)
def test_slices(files, pipelines, rows, expected):
    assert sharding.slice_of(rows, files, pipelines) == expected

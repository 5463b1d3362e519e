"""--profile, and the timeline of several workers whose clocks differ."""

import json

import pytest

from tfdp.bench import profile, timeline
from tfdp.bench.timeline import Span
from tfdp.error import Error


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("steps:10-20", 10, 20), ("steps:7", 7, 7), ("steps:1-1000", 1, 1000)],
)
def test_steps_are_read(text, first, last):
    found = profile.parse(text, "/runs/a")
    assert found == profile.Profile(first, last, "/runs/a")
    assert profile.Profile.from_variable({"A": found.to_text()}, "A") == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "--profile=: write --profile=steps:10-20"),
        ("10-20", "--profile=10-20: write --profile=steps:10-20"),
        ("steps:10-", "write --profile=steps:10-20"),
        ("steps:0-3", "the first step is 1, and the last one stands last."),
        ("steps:20-10", "the first step is 1, and the last one stands last."),
        ("steps:1-1001", "trace at most 1,000 steps"),
    ],
)
def test_other_texts_are_refused(text, told):
    with pytest.raises(Error) as error:
        profile.parse(text, "")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def spans(ahead, slow=0):
    """Two steps of a worker whose clock is ahead; times in us since a moment of 2026."""
    clock = 1_800_000_000_000_000_000 + ahead
    rows = []
    for step in (1, 2):
        begin = 10_000 * step
        rows += [
            ("python", "train", begin, begin + 9_000, step),
            ("python", "EagerExecute", begin, begin + 9_000, 0),
            (
                "tf_data_iterator_get_next/1",
                "IteratorGetNextOp::DoCompute",
                begin,
                begin + 1_000,
                0,
            ),
            ("tf_data_iterator_get_next/1", "Iterator::Root", begin, begin + 900, 0),
            (
                "tf_data_iterator_resource/2",
                "Iterator::Root::Prefetch::Map",
                begin,
                begin + 5_000,
                0,
            ),
            ("tf_Compute/3", "dense/MatMul:MatMul", begin + 1_000, begin + 3_000, 0),
            # It runs at the same time, and then another follows at once.
            ("tf_Compute/4", "dense/Relu:Relu", begin + 2_000, begin + 4_000 + slow, 0),
            ("tf_Compute/4", "ExecutorState::Process", begin, begin + 9_000, 0),
            ("tf_Compute/3", "PyFunc:PyFunc", begin + 4_000, begin + 8_000, 0),
            # Whoever comes later waits for less; all leave together.
            ("tf_Compute/3", "tfdp::all_reduce", begin + 4_000 + slow, begin + 8_000, 0),
        ]
    return [
        Span(thread, name, clock + 1_000 * begin, clock + 1_000 * end, step)
        for thread, name, begin, end, step in rows
    ]


def test_what_a_worker_did_is_found_in_its_trace():
    lanes = timeline.lanes_of(spans(0))
    first = lanes["steps"][0][0]
    relative = {
        name: [((begin - first) // 1000, (end - first) // 1000, text) for begin, end, text in one]
        for name, one in lanes.items()
    }
    assert relative == {
        "steps": [(0, 9_000, "step 1"), (10_000, 19_000, "step 2")],
        "waits for input": [(0, 1_000, "waits for input"), (10_000, 11_000, "waits for input")],
        "computing": [(1_000, 4_000, "computing"), (11_000, 14_000, "computing")],
        "all-reduce": [(4_000, 8_000, "all-reduce"), (14_000, 18_000, "all-reduce")],
        "input made ahead": [(0, 5_000, "input made ahead"), (10_000, 15_000, "input made ahead")],
    }


def test_the_kernels_of_a_gpu_are_told_apart():
    lanes = timeline.lanes_of(
        [
            Span("Stream #1", "ampere_sgemm_128x64", 0, 50_000, on_device=True),
            Span("Stream #2", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 50_000, 90_000, 0, True),
        ]
    )
    assert [piece[:2] for piece in lanes["computing"]] == [(0, 50_000)]
    assert [piece[:2] for piece in lanes["all-reduce"]] == [(50_000, 90_000)]


def test_clocks_are_laid_upon_one_another_at_the_meeting_points():
    second = 1_000_000_000
    workers = {
        "worker:0": timeline.lanes_of(spans(0)),
        "worker:1": timeline.lanes_of(spans(3 * second, slow=2_000)),
    }
    assert timeline.offsets(workers) == {"worker:0": 0, "worker:1": 3 * second}
    told = json.loads(timeline.merged(workers))
    assert told["otherData"] == {
        "clocks ahead of the first worker's, in us": {"worker:0": 0.0, "worker:1": 3e6}
    }
    names = {
        e["pid"]: e["args"]["name"] for e in told["traceEvents"] if e["name"] == "process_name"
    }
    assert names == {1: "worker:0", 2: "worker:1"}
    sums = [e for e in told["traceEvents"] if e.get("cat") == "all-reduce"]
    # Of worker:1, which computes longer, the sum is shorter; both end at the same time.
    assert [(e["pid"], e["ts"], e["dur"]) for e in sums] == [
        (1, 4_000.0, 4_000.0),
        (1, 14_000.0, 4_000.0),
        (2, 6_000.0, 2_000.0),
        (2, 16_000.0, 2_000.0),
    ]
    assert min(e["ts"] for e in told["traceEvents"] if e["ph"] == "X") == 0.0


def test_without_sums_the_ends_of_steps_are_the_meeting_points():
    lanes = timeline.lanes_of(spans(0)) | {"all-reduce": []}
    other = timeline.lanes_of(spans(-5_000_000)) | {"all-reduce": []}
    assert timeline.offsets({"a": lanes, "b": other}) == {"a": 0, "b": -5_000_000}
    short = {**other, "steps": other["steps"][:1]}
    assert timeline.offsets({"a": lanes, "b": short}) == {"a": 0, "b": 0}

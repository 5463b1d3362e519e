"""Which of shared memory, Gloo and TensorFlow carries sums, and that all give the same numbers."""

import pathlib

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "carried.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory, environment) -> list[dict[str, str]]:
    """Return what each of two workers has printed: the answers by their names."""
    folder = tmp_path_factory.mktemp("carried")
    environment = {**environment, "LATE": "shared_memory"}
    processes.run(
        ["launch", "--workers=2", "--log_dir=logs", "--", SCRIPT], folder, environment, 240
    )
    logs = [(folder / "logs" / f"worker-{n}.log").read_text() for n in range(2)]
    return [
        {
            "whole log": log,
            **dict(line.split(": ", 1) for line in log.splitlines() if ": " in line),
        }
        for log in logs
    ]


REFUSED = "ValueError: Communication(implementation='gloo'): Gloo cannot be used. "


@pytest.mark.parametrize(
    ("case", "answer"),
    [
        (
            "not everywhere",
            f"{REFUSED}worker:1: it is not installed: pip install 'tfdp[gloo]' on every worker.",
        ),
        (
            "two machines",
            "ValueError: Communication(implementation='shared_memory'): Shared memory cannot be "
            "used. worker:0: worker 1 runs on another machine than worker 0.",
        ),
        # Nobody can be reached where one of two cannot listen: the chief says so first.
        ("not connected", f"{REFUSED}worker:0: it cannot connect by 127.0.0.1: "),
        ("auto, not everywhere", "TensorFlow"),
        ("auto, two machines", "gloo"),
        ("synchronised layer", "gloo"),
        ("gloo", "gloo"),
        ("shared memory", "shared_memory"),
        ("synchronised layer in shared memory", "shared_memory"),
        ("auto", "shared_memory"),
    ],
)
def test_all_workers_take_the_same(case, answer, told):
    assert [one[case][: len(answer)] for one in told] == [answer, answer]


def test_a_run_without_gloo_says_what_it_loses_and_how_to_get_it(told):
    lines = [line for line in told[0]["whole log"].splitlines() if "RING" in line]
    assert len(lines) == 1
    assert (
        "Gloo cannot be used: worker:1: it is not installed: pip install 'tfdp[gloo]'" in lines[0]
    )


@pytest.mark.parametrize("kind", ["gloo", "shared_memory"])
@pytest.mark.parametrize("compression", ["None", "float16", "bfloat16"])
def test_all_give_the_numbers_of_ring_and_the_same_bits_everywhere(kind, compression, told):
    first, second = told
    assert first[f"bits {kind} {compression}"] == second[f"bits {kind} {compression}"]
    # Halves: as far from what float32 gives as RING's are, or less far.
    ring = float(first[f"ring {compression}"])
    assert float(first[f"{kind} {compression}"]) <= 1e-6 + 1.5 * ring


def test_a_worker_that_is_late_ends_the_wait(told):
    assert "took longer than its timeout_seconds" in told[0]["late"]
    assert 3 <= float(told[0]["seconds"]) < 30

"""The scaling report: speed-up and efficiency by hand, files without TensorFlow, the figure."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
from test_bench_predict import benched

from tfdp.bench import scaling, scaling_figure
from tfdp.bench.fitted import Source
from tfdp.error import Error

WEAK = [Source(benched(count, 50e6, hosts=False)) for count in (4, 1, 2)]
STRONG = [Source(benched(count, 50e6, rows=16 // count, hosts=False)) for count in (1, 2, 4)]


def test_weak_scaling_is_found_and_compared_with_one_replica():
    found = scaling.of(WEAK)
    assert found.mode == "weak"
    assert [point.replicas for point in found.points] == [1, 2, 4]
    assert [point.global_batch_examples for point in found.points] == [16, 32, 64]
    # 26 ms alone; two hops of 0.1 ms and 2 MB at 40 MB/s beside that: 76.2 ms.
    assert found.points[1].step_seconds == pytest.approx(0.0762)
    assert found.points[1].speed_up == pytest.approx(2 * 26 / 76.2)
    assert found.points[1].efficiency == pytest.approx(26 / 76.2)
    assert found.points[0].speed_up == found.points[0].efficiency == 1.0
    # To twice the replicas that were measured.
    assert [one.replicas for one in found.expected] == list(range(1, 9))
    by_replicas = {one.replicas: one for one in found.expected}
    for point in found.points:
        one = by_replicas[point.replicas]
        assert one.low_speed_up < point.speed_up < one.high_speed_up


def test_strong_scaling_is_found():
    found = scaling.of(STRONG)
    assert found.mode == "strong"
    # 10 ms + 8 rows x 1 ms + 50.2 ms of exchange, in place of 26 ms.
    assert found.points[1].speed_up == pytest.approx(26 / 68.2)
    by_replicas = {one.replicas: one.speed_up for one in found.expected}
    assert by_replicas[2] == pytest.approx(26 / 68.2, rel=0.02)
    assert by_replicas[8] < by_replicas[4]


def test_without_one_replica_the_smallest_number_counts_as_perfect():
    found = scaling.of(WEAK[:1] + WEAK[2:])
    assert [point.speed_up for point in found.points] == pytest.approx([2.0, 4 * 76.2 / 101.6])
    assert found.notes[1] == ("2 replicas count as 2 times one: nobody has measured one alone.")


def test_workers_that_share_a_machines_cores_are_named():
    workers = tuple(dataclasses.replace(w, cores=1) for w in WEAK[0].record.workers)
    crowded = Source(dataclasses.replace(WEAK[0].record, workers=workers))
    assert "A worker has 4, 4, 1 cores" in scaling.of([*WEAK[1:], crowded]).notes[0]
    assert scaling.of(WEAK).notes[0].startswith("All workers are on one machine, with 4 cores each")


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (WEAK[:1], "different numbers of replicas; these have [4]"),
        ([WEAK[0], WEAK[0]], "these have [4, 4]"),
        ([STRONG[0], WEAK[0], STRONG[1]], "neither the global batch (strong scaling) nor"),
    ],
)
def test_what_is_no_scaling_is_one_line(sources, told):
    with pytest.raises(Error) as error:
        scaling.of(sources)
    assert told in str(error.value)


def test_the_text_the_file_and_the_figure(tmp_path):
    found = scaling.of(WEAK)
    text = scaling.text(found)
    for part in ("Scaling (weak: each replica keeps its rows)", "0.68 x", "34%", "76.2 ms"):
        assert part in text, text
    assert "8 replicas would be" in text
    told = json.loads(found.write(tmp_path / "scaling.json").read_text())
    assert told["points"][1]["efficiency"] == found.points[1].efficiency
    assert told["schema_version"] == 1
    paths = scaling_figure.write(found, tmp_path)
    names = ["scaling.svg", "scaling.png", "scaling-dark.svg", "scaling-dark.png"]
    assert [path.name for path in paths] == names
    assert all(path.stat().st_size > 5000 for path in paths)


def test_saved_benches_are_compared_and_predicted_from_without_tensorflow(tmp_path):
    for source in WEAK:
        source.record.write(tmp_path / f"{source.record.replicas}.json")
    code = (
        "import sys\n"
        "from tfdp import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    slow = {'tensorflow', 'keras', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "    sys.exit(f'imported {slow}' if slow else end.code)\n"
    )

    def told(*words):
        done = subprocess.run(
            [sys.executable, "-c", code, "bench", "--from=1.json,2.json,4.json", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(told("--json"))["mode"] == "weak"
    assert "What if: 16 hosts x 8 = 128 replicas" in told("--what-if=hosts=16,gpus=8,link=25gbit")
    assert json.loads(told("--json", "--what-if=gpus=8"))["replicas"] == 8

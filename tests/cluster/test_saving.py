"""What every worker saves to one path is written once, by the chief."""

import pathlib

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "saving.py")


def test_the_chief_writes(tmp_path, environment):
    done = processes.run(
        ["launch", "--workers=2", "--log_dir=logs", "--", SCRIPT], tmp_path, environment
    )
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "logs" / f"worker-{n}.log").read_text() for n in (0, 1)]
    for log in logs:
        assert [line for line in log.splitlines() if line.startswith("turn: ")] == [
            "turn: 0",
            "turn: 1",
            "turn: 2",
        ]
        assert "saved in the scope" in log
        assert "quantized: int8" in log
    assert logs[1].count("The chief writes what all workers save to one path") == 1
    assert "The chief writes" not in logs[0]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"whole-2.keras", "some.weights.h5", "exported", "own-0.keras", "own-1.keras"} <= names

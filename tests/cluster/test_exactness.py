"""Promise 1 across processes: two workers train what one device trains."""

import json
import pathlib
import subprocess
import sys

import pytest
from fit import cases

from cluster import exactness

pytestmark = pytest.mark.cluster

SCRIPT = pathlib.Path(__file__).parent / "exactness.py"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """Run every case once on two workers; return what they wrote, by group and case."""
    folder = tmp_path_factory.mktemp("exactness")
    output = folder / "outcomes"
    command = [sys.executable, "-m", "tfdp", "launch", "--workers=2", f"--log_dir={folder}"]
    done = subprocess.run(
        [*command, "--", str(SCRIPT), str(output)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    texts = [pathlib.Path(f"{output}-{worker}").read_text() for worker in range(2)]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    return {(line["group"], line["case"]): line for line in lines}


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, case.name) for group in cases.TABLES for case in exactness.on_workers(group)],
)
def test_two_workers_train_what_one_device_trains(group, name, outcomes):
    outcome = outcomes[group, name]
    assert "error" not in outcome, outcome["error"]
    tolerance = outcome["tolerance"]
    assert not {k: v for k, v in outcome["differences"].items() if not v <= tolerance}

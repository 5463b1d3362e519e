"""A training that crashes is started again, and goes on where it was."""

import pathlib
import re

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "resuming.py")


@pytest.mark.exhaustive  # test_recovery and test_ssh start again, too
def test_a_training_that_comes_further_is_started_again(tmp_path, environment):
    # Two failures, each after progress that fit has reported: a budget of one is not touched.
    words = ["launch", "--workers=2", "--max-restarts=1", "--log_dir=logs", "--", SCRIPT, "backup"]
    done = processes.run(words, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "start again" in line]
    assert [re.sub(r"All tasks.*\(", "(", line) for line in told] == [
        "worker:1 exited with code 70, epoch 0, step 4: ended itself with that code. "
        "(there was progress: the budget is not touched).",
        "worker:1 exited with code 70, epoch 2, step 4: ended itself with that code. "
        "(there was progress: the budget is not touched).",
    ]
    assert done.stderr.splitlines()[-1] == "All went well after 2 restarts."
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    begun = re.findall(r"^(?:Epoch (\d) begins\.|\(tfdp: restart (\d)\))$", log, re.MULTILINE)
    assert begun == [
        *[("0", ""), ("1", "")],
        *[("", "1"), ("1", ""), ("2", ""), ("3", "")],
        *[("", "2"), ("3", ""), ("4", "")],
    ]
    assert (tmp_path / "logs" / "worker-0.step").read_text().split() == ["4", "4"]

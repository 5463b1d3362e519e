"""Promise 1 across processes: two workers train what one device trains."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import exhaustive_unless
from fit import cases

from cluster.exactness import MECHANISMS

# All cases, with --all, take longer than a test may.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

SCRIPT = pathlib.Path(__file__).parent / "exactness.py"


# Shared memory is the default. How sums are carried shows in how batches are split, and in the
# types that travel.
CARRIED = ("batches", "precision")


def run(folder: pathlib.Path, names, **environment: str) -> dict[tuple[str, str], dict]:
    """Run cases on two workers; return what they wrote, by group and case."""
    output = folder / "outcomes"
    command = [sys.executable, "-m", "tfdp", "launch", "--workers=2", f"--log_dir={folder}"]
    done = subprocess.run(
        [*command, "--", str(SCRIPT), str(output)],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, **environment, "CASES": ",".join(names)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    texts = [pathlib.Path(f"{output}-{worker}").read_text() for worker in range(2)]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    return {(line["group"], line["case"]): line for line in lines}


def chosen(groups) -> list:
    """Return a parameter set for each case: those of MECHANISMS, and with --all the others."""
    return [
        pytest.param(group, case.name, marks=exhaustive_unless(case.name in MECHANISMS[group]))
        for group in groups
        for case in cases.TABLES[group]()
    ]


def names(groups, config) -> list[str]:
    """Return the names of the cases that this run of the tests looks at."""
    everything = config.getoption("--all")
    return [
        case.name
        for group in groups
        for case in cases.TABLES[group]()
        if everything or case.name in MECHANISMS[group]
    ]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, pytestconfig) -> dict[tuple[str, str], dict]:
    return run(tmp_path_factory.mktemp("exactness"), names(cases.TABLES, pytestconfig))


@pytest.fixture(scope="module", params=["ring", "gloo"])
def outcomes_carried(request, tmp_path_factory, pytestconfig) -> dict[tuple[str, str], dict]:
    chosen = names(CARRIED, pytestconfig)
    return run(tmp_path_factory.mktemp(request.param), chosen, IMPLEMENTATION=request.param)


@pytest.mark.parametrize(("group", "name"), chosen(cases.TABLES))
def test_two_workers_train_what_one_device_trains(group, name, outcomes):
    check(outcomes[group, name])


@pytest.mark.exhaustive  # test_carriers compares them
@pytest.mark.parametrize(("group", "name"), chosen(CARRIED))
def test_ring_and_gloo_carry_the_same_sums(group, name, outcomes_carried):
    check(outcomes_carried[group, name])


def check(outcome: dict) -> None:
    assert "error" not in outcome, outcome["error"]
    tolerance = outcome["tolerance"]
    assert not {k: v for k, v in outcome["differences"].items() if not v <= tolerance}

"""Promise 1 for programs that nobody wrote: drawn at random, always the same ones.

scripts/fuzz draws others. A program that fails here is in the message; what it shows becomes a
plain case in cases.py when it is mended.
"""

import dataclasses
import functools

import pytest
from conftest import exhaustive_unless

from fit import programs
from tfdp import fit

# All with --all; one shows that what draws and compares them works.
COUNT, FEW, SEED = 30, 1, 13


@functools.cache
def drawn() -> list[programs.Program]:
    return programs.drawn(COUNT, SEED)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=exhaustive_unless(n < FEW)) for n in range(COUNT)]
)
def test_replicas_train_what_one_device_trains(number, mirrored, one_device):
    program = drawn()[number]
    print(program)
    if program.reference == "keras":
        fit.disable()
        expected = programs.run(program)
        fit.enable()
    else:
        fit.enable()
        expected = programs.run(program, one_device)
    outcome = programs.run(program, mirrored[2])
    found = programs.compare(expected, outcome, program)
    if not programs.may_differ(program):
        assert found == {}, program


def test_a_seed_draws_the_same_programs_each_of_which_can_be_pasted():
    assert programs.drawn(5, seed=1) == programs.drawn(5, seed=1)
    assert programs.drawn(5, seed=1) != programs.drawn(5, seed=2)
    for program in drawn():
        assert eval(repr(program), vars(programs)) == program  # noqa: S307
        assert not programs.pending(program)


def test_what_differs_is_named():
    program = programs.Program()
    right = programs.Outcome({"weights": [1.0, 2.0], "test": {"loss": 100.0}})
    other = programs.Outcome({"weights": [1.0, 2.1], "test": {"loss": 100.0001}})
    assert programs.compare(right, right, program) == {}
    assert list(programs.compare(right, other, program)) == ["weights 1"]
    assert programs.compare(right, programs.Outcome({"weights": [1.0]}), program) == {
        "test loss": float("inf"),
        "weights 1": float("inf"),
    }


def test_a_simpler_program_lacks_something():
    program = dataclasses.replace(programs.Program(), layers=("dense", "l2"), epochs=3)
    simpler = list(programs.simpler(program))
    assert dataclasses.replace(program, layers=("l2",)) in simpler
    assert dataclasses.replace(program, epochs=1) in simpler
    assert program not in simpler

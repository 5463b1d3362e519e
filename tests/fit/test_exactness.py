"""Promise 1: replicas train what one device trains, whatever the batches, inputs, losses, ..."""

import functools

import pytest
from conftest import exhaustive_unless

from fit import cases
from tfdp import fit


@functools.cache
def reference(case: cases.Case, one_device: object) -> cases.Outcome:
    """Return what one device gives: stock Keras, or this package where Keras cannot."""
    fit.disable()
    if case.reference == "keras":
        return cases.run(case)
    fit.enable()
    return cases.run(case, one_device)


# Where a third replica shows what two do not: how rows are split, and what each of them assigns.
THIRD_MATTERS = ("batches", "scripts")
# What another case shows already: the same mechanism with other numbers, or compiled once more.
AGAIN = {
    "execution": (
        "jit_compile",
        "jit_compile_accumulation",
        "jit_compile_adam_clip",
        "jit_compile_steps",
    ),
    "inputs": ("bool", "int32", "uint8"),
    "losses": (
        "compute_loss",
        "huber",
        "loss_subclass",
        "masked",
        "masked_sum",
        "reduction_None",
        "reduction_mean",
        "reduction_sum",
        "reduction_sum_over_batch_size",
    ),
    "optimizers": (
        "adadelta",
        "adagrad",
        "adam_amsgrad",
        "adamax",
        "adamw",
        "lamb",
        "loss_scale_nadam",
        "nadam",
        "rmsprop",
        "tfdp_lamb",
        "tfdp_lars_small",
    ),
    "precision": ("mixed_bfloat16_jit", "overflow_jit"),
}
RUNS = [
    pytest.param(
        case,
        replicas,
        id=f"{group}-{case.name}-{replicas}",
        marks=exhaustive_unless(
            case.name not in AGAIN.get(group, ()) and (replicas == 2 or group in THIRD_MATTERS)
        ),
    )
    for group, table in cases.TABLES.items()
    for case in table()
    for replicas in ((2, 3) if case.three else (2,))
]


def test_what_is_left_to_the_whole_run_is_there():
    assert {g: set(names) - {c.name for c in cases.TABLES[g]()} for g, names in AGAIN.items()} == {
        group: set() for group in AGAIN
    }


@pytest.mark.parametrize(("case", "replicas"), RUNS)
def test_replicas_train_what_one_device_trains(case, replicas, mirrored, one_device):
    expected = reference(case, one_device)
    fit.enable()
    outcome = cases.run(case, mirrored[replicas])
    found = cases.differences(expected, outcome)
    wrong = {name: value for name, value in found.items() if not value <= case.tolerance}
    assert not wrong

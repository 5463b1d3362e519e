"""Promise 1: replicas train what one device trains, whatever the batches, inputs, losses, ..."""

import pytest
from conftest import exhaustive_unless

from fit import cases
from tfdp import fit

# Where a third replica shows what two do not: how rows are split.
THIRD_MATTERS = ("all_but_one_empty", "ragged_last")
# What another case, or cluster/test_exactness, shows already: the same mechanism with other
# numbers, of another form, or compiled once more.
AGAIN = {
    "batches": ("even_static", "not_a_multiple", "one_row_known"),
    "execution": (
        "jit_compile",
        "jit_compile_accumulation",
        "jit_compile_adam_clip",
        "jit_compile_loss_scale",
        "jit_compile_steps",
        "run_eagerly_towers",
        "steps_per_execution",
        "train_step_eager",
        "train_step_executions",
        "train_step_logs_one_row",
    ),
    "inputs": (
        "bool",
        "dataset_known",
        "dataset_repeat",
        "generator_infinite",
        "int32",
        "py_dataset_threads",
        "train_shuffled",
        "two_inputs_outputs_dataset",
        "uint8",
        "validation_split",
        "validation_steps",
    ),
    "losses": (
        "compute_loss",
        "compute_loss_weighted",
        "function_scalar_keras",
        "huber",
        "loss_subclass",
        "masked",
        "masked_mean_with_sample_weight",
        "masked_sum",
        "reduction_None",
        "reduction_None_weighted",
        "reduction_mean",
        "reduction_mean_weighted",
        "reduction_mean_with_sample_weight",
        "reduction_sum",
        "reduction_sum_over_batch_size",
        "reduction_sum_over_batch_size_weighted",
    ),
    "metrics": ("many_metrics",),
    "optimizers": (
        "accumulation",
        "adadelta",
        "adafactor",
        "adagrad",
        "adam_amsgrad",
        "adamax",
        "adamw",
        "clipnorm",
        "clipvalue",
        "ema",
        "frozen_whole",
        "ftrl",
        "lamb",
        "lion",
        "loss_scale",
        "loss_scale_factor",
        "loss_scale_nadam",
        "nadam",
        "rmsprop",
        "sgd_momentum",
        "tfdp_lamb",
        "tfdp_lamb_jit_compile",
        "tfdp_lars",
        "tfdp_lars_small",
        "tfdp_sgd",
        "weight_decay",
    ),
    "precision": (
        "mixed_bfloat16",
        "mixed_bfloat16_jit",
        "mixed_float16_jit",
        "overflow",
        "overflow_jit",
    ),
    "scripts": (
        "clipped_weights_of_one_row",
        "dict_metric_of_one_row",
        "gradients_alone_of_one_row",
        "layer_counts_compiled",
        "layer_overwrites_a_weight_of_one_row",
        "learning_rate_in_step_of_one_row",
        "metric_kept_over_epochs_of_one_row",
        "optimizers_everywhere_eagerly",
        "optimizers_everywhere_of_one_row",
        "sharpness_eagerly",
        "sharpness_of_one_row",
        "spectral_compiled",
        "spectral_normalization_of_one_row",
        "teacher_of_one_row",
    ),
}
RUNS = [
    pytest.param(
        case,
        replicas,
        id=f"{group}-{case.name}-{replicas}",
        marks=exhaustive_unless(
            case.name not in AGAIN.get(group, ()) and (replicas == 2 or case.name in THIRD_MATTERS)
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
    expected = cases.reference(case, one_device)
    fit.enable()
    outcome = cases.run(case, mirrored[replicas])
    found = cases.differences(expected, outcome)
    wrong = {name: value for name, value in found.items() if not value <= case.tolerance}
    assert not wrong

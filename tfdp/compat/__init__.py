"""The private names of TensorFlow and Keras that we cannot avoid, as functions named by purpose.

Everything else in tfdp uses public names. Each function says what it stands for and why there
is no public way; tried with TensorFlow 2.20 and 2.21, Keras 3.13.2 to 3.15.1.
"""

from tfdp.compat.collectives import enlarge_receive_chunks
from tfdp.compat.compiled import (
    ACTIVITY_LOSSES_ARE_MEANS,
    BATCH_METHODS_RESET_METRICS,
    RESOLVE_AUTO_JIT,
    activity_regularized_layers,
    align_ranks,
    build,
    compile_loss,
    compiled_state,
    flatten_metrics_in_order,
    initial_epoch,
    is_built,
    keras_mask,
    leaf_metrics,
    loss_tracker,
    merge_weights,
    metric_function,
    metrics_result_or_logs,
    replace_losses,
    supports_jit,
    watch_metric_function,
)
from tfdp.compat.coordination import (
    abort_collectives,
    forget_text,
    has_shared_text,
    share_text,
    shared_text,
    watch_initial_values,
)
from tfdp.compat.distribute import (
    function,
    global_seed,
    hide_replica_count,
    leave_strategy,
)
from tfdp.compat.export import (
    add_asset,
)
from tfdp.compat.inputs import (
    data_adapter,
    dataset,
    is_generator_adapter,
    local_spec,
    train_validation_split,
)
from tfdp.compat.variables import (
    bind,
    leave_stateless_scope,
    optimizer_on_one_device,
    replace_apply,
    replace_value,
    seed_states,
    synchronized_state,
)

__all__ = [
    "ACTIVITY_LOSSES_ARE_MEANS",
    "BATCH_METHODS_RESET_METRICS",
    "RESOLVE_AUTO_JIT",
    "abort_collectives",
    "activity_regularized_layers",
    "add_asset",
    "align_ranks",
    "bind",
    "build",
    "compile_loss",
    "compiled_state",
    "data_adapter",
    "dataset",
    "enlarge_receive_chunks",
    "flatten_metrics_in_order",
    "forget_text",
    "function",
    "global_seed",
    "has_shared_text",
    "hide_replica_count",
    "initial_epoch",
    "is_built",
    "is_generator_adapter",
    "keras_mask",
    "leaf_metrics",
    "leave_stateless_scope",
    "leave_strategy",
    "local_spec",
    "loss_tracker",
    "merge_weights",
    "metric_function",
    "metrics_result_or_logs",
    "optimizer_on_one_device",
    "replace_apply",
    "replace_losses",
    "replace_value",
    "seed_states",
    "share_text",
    "shared_text",
    "supports_jit",
    "synchronized_state",
    "train_validation_split",
    "watch_initial_values",
    "watch_metric_function",
]

"""Keras's fit, evaluate and predict under tf.distribute, with the numbers of one device.

Read in this order:

    dispatch        which trainer a model gets
    sync            epochs, callbacks, validation: one trainer for all synchronous strategies
    feed            the input, split over the replicas by rows
    loop            steps in a row, as graphs; where metrics are summed up
    step            one step on a replica: gradients, all-reduce, update
    loss, metrics   why the sums over replicas are exact
    replica, view   a replica's copies of the variables, and what it sees and assigns of them
    logs            what a step returns beside the metrics
    communication   how gradients travel
    transport, gloo, gloo_process   what carries them between workers: Gloo, or TensorFlow
    agreement, digest   do all tasks train the same, on the same rows?
    callbacks, saving, gather, session

and for parameter servers

    parameter_server        fit, evaluate, predict: callbacks and logs
    epochs, work            batches handed out to workers, results taken back
    worker_feed             data that workers read themselves
    remote_step             one step on a worker, and its report
    updates, partitions     the optimizer on the servers; variables in partitions
    decisions               whether a step updates: loss scale, accumulation
    summed                  the synchronous step
    evaluator               fit of the task that evaluates checkpoints
"""

from tfdp.fit.communication import Communication
from tfdp.fit.dispatch import (
    disable,
    enable,
    set_communication,
    set_evaluator,
    set_server_options,
)
from tfdp.fit.epochs import Options as ServerOptions
from tfdp.fit.partitions import initialize_by_partition

__all__ = [
    "Communication",
    "ServerOptions",
    "disable",
    "enable",
    "initialize_by_partition",
    "set_communication",
    "set_evaluator",
    "set_server_options",
]

"""Keras's fit, evaluate and predict under tf.distribute, with the numbers of one device.

Read in this order:

    dispatch        which engine trains a model
    trainer         fit, evaluate and predict as Keras has them: what both engines share
    call            the arguments of fit, evaluate and predict, and what they return
    callbacks, saving, evaluator    what runs beside the steps
    feed, split, digest, random_state   the input, split over the replicas by rows
    pace, observers     how fast an epoch was; who measures a fit before it begins
    recovery/       a fit that was killed goes on where it was
    loss, metrics   why the sums over replicas are exact
    view, logs      what a step sees and assigns of the variables, and what it returns
    gradients, optimizers, predictions, retrace
    noise           the gradient noise scale: what both engines share

    replicas/       all replicas in step: one device, MirroredStrategy, several workers
        engine          one epoch of training, testing or predicting
        loop            steps in a row, as graphs; where metrics are summed up
        step, user_step     one step on a replica: gradients, all-reduce, update
        apart, meetings     replicas that train by themselves, and meet every so many steps
        replica         a replica's copies of the variables
        communication   how gradients travel
        transport                       what carries them between workers, or TensorFlow:
        shared_memory, shares, gloo, gloo_process, memory
        agreement, differences      do all tasks train the same?
        exchange, model_watch       how they tell each other; whether they make the same model
        gather          predictions of all replicas
        rehearsal       steps, and parts of steps, that leave no trace: for the bench; kept
        clock           how long steps wait for their batches

    servers/        parameter servers
        engine          one epoch of training, testing or predicting
        coordinator, scheduled      batches handed out to workers, results taken back
        worker_feed     data that workers read themselves
        worker_step     one step on a worker, and its report; reports: their sums
        update, partitions  the optimizer on the servers; variables in partitions
        decisions       whether a step updates: loss scale, accumulation
        synchronous     the synchronous step
"""

from tfdp.fit.call import tell_progress
from tfdp.fit.dispatch import (
    disable,
    enable,
    servers_keep_no_weights,
    set_communication,
    set_evaluator,
    set_server_options,
    set_several,
)
from tfdp.fit.observers import add_to_next_fit, observe_next_fit
from tfdp.fit.pace import Pace
from tfdp.fit.recovery.callback import BackupAndRestore
from tfdp.fit.replicas.communication import Communication
from tfdp.fit.replicas.exchange import same_everywhere
from tfdp.fit.replicas.gloo import binding as gloo_binding
from tfdp.fit.replicas.model_watch import watch
from tfdp.fit.replicas.rehearsal import Rehearsal, Runs
from tfdp.fit.replicas.transport import INSTALL as INSTALL_GLOO
from tfdp.fit.replicas.transport import carriers
from tfdp.fit.servers.coordinator import Options as ServerOptions
from tfdp.fit.servers.partitions import initialize_by_partition
from tfdp.fit.servers.partitions import whole as whole_variables

__all__ = [
    "INSTALL_GLOO",
    "BackupAndRestore",
    "Communication",
    "Pace",
    "Rehearsal",
    "Runs",
    "ServerOptions",
    "add_to_next_fit",
    "carriers",
    "disable",
    "enable",
    "gloo_binding",
    "initialize_by_partition",
    "observe_next_fit",
    "same_everywhere",
    "servers_keep_no_weights",
    "set_communication",
    "set_evaluator",
    "set_server_options",
    "set_several",
    "tell_progress",
    "watch",
    "whole_variables",
]

"""Serve as a parameter server, or as a worker that a coordinator sends its work to.

serve(cluster, task, start_seconds=300)     # until the coordinator is gone, or does not come
"""

import os
import socket
import sys
import threading
import time

import tensorflow as tf

from tfdp import cluster as cluster_lib
from tfdp.launch import rendezvous

# A coordinator that does not answer for so long is gone, whether it has ended, was killed, or is
# cut off: 20 s, and at most one look more.
_LOOK_SECONDS = 2.0
_GONE_SECONDS = 20.0
# One that has not answered yet is looked for more often: it may be killed soon after it came, and
# would not have come at all.
_FIRST_LOOK_SECONDS = 0.1


def serve(
    cluster: cluster_lib.Cluster, task: cluster_lib.Task, *, start_seconds: float = 0.0
) -> None:
    """Start TensorFlow's server for this task, and serve until the coordinator is gone.

    TensorFlow's own server waits for ever, also when its coordinator was killed. This one ends the
    process: with code 1 when the coordinator has never come.

    Args:
        cluster: Who takes part.
        task: A ps, or a worker beside one.
        start_seconds: How long to wait for the coordinator's first answer; 0 for ever.
    """
    # A call that waits for another task holds a thread: with one thread a core, calls of several
    # workers could wait for each other on a small machine.
    threads = max(os.cpu_count() or 1, len(cluster.worker) + len(cluster.ps) + 2)
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster.spec()),
        job_name=task.type,
        task_index=task.index,
        protocol="grpc",
        config=tf.compat.v1.ConfigProto(inter_op_parallelism_threads=threads),
    )
    print(f"{task} serves at {cluster.address(task)}.", flush=True)
    chief = cluster.chief_task()
    if chief.type == "chief":
        where, came = f"{chief} ({cluster.address(chief)})", True
        try:
            wait_until_gone(
                cluster.host(chief),
                cluster.port(chief),
                threading.Event(),
                start_seconds=start_seconds,
            )
            print(f"{task}: {where} is gone: ending.", flush=True)
        except TimeoutError as error:
            came = False
            sys.stderr.write(
                f"{task}: {where} {error}: ending. Start all tasks of the cluster; "
                f"{rendezvous.TIMEOUT_VARIABLE} is the time to wait, in seconds (0: for ever).\n"
            )
            sys.stderr.flush()
        # TensorFlow's server cannot be stopped.
        os._exit(0 if came else 1)
    server.join()


def wait_until_gone(
    host: str,
    port: int,
    stop: threading.Event,
    *,
    look_seconds: float = _LOOK_SECONDS,
    gone_seconds: float = _GONE_SECONDS,
    start_seconds: float = 0.0,
) -> None:
    """Return when nobody answers at an address any more, where somebody once did.

    Args:
        host: Its host.
        port: Its port.
        stop: Set to return at once.
        look_seconds: How often to look once it has answered, and how long an answer may take.
        gone_seconds: How long nobody may answer.
        start_seconds: How long nobody may have answered at all; 0 for ever.

    Raises:
        TimeoutError: Nobody has answered in that time.
    """
    begin = time.monotonic()
    answered: float | None = None
    while not stop.wait(_FIRST_LOOK_SECONDS if answered is None else look_seconds):
        try:
            socket.create_connection((host, port), look_seconds).close()
            answered = time.monotonic()
        except OSError:
            now = time.monotonic()
            if answered is not None and now - answered > gone_seconds:
                return
            if answered is None and 0 < start_seconds < now - begin:
                raise TimeoutError(f"has not answered for {start_seconds:g} s") from None

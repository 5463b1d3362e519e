"""Serve as a parameter server, or as a worker that a coordinator sends its work to.

serve(cluster, task)        # does not return
"""

import tensorflow as tf

from tfdp import cluster as cluster_lib


def serve(cluster: cluster_lib.Cluster, task: cluster_lib.Task) -> None:
    """Start TensorFlow's server for this task and wait for as long as the process lives."""
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster.spec()),
        job_name=task.type,
        task_index=task.index,
        protocol="grpc",
    )
    print(f"{task} serves at {cluster.address(task)}.", flush=True)
    server.join()

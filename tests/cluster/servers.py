"""Run by test_servers.py: a cluster of parameter servers in one process, and what is exact on it.

    servers.py OUTPUT.jsonl WORKERS PS CHECK ...

TensorFlow's servers of all tasks live in this process, so that a check costs no start of others.
Each check writes a line: its name and what it found, or the error.
"""

import gc
import json
import os
import pathlib
import socket
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(workers: int, ps: int) -> list:
    """Start a server for each task but the chief, which this process is, by its TF_CONFIG."""
    import tensorflow as tf

    ports = iter(free_ports(1 + workers + ps))
    sizes = {"chief": 1, "worker": workers, "ps": ps}
    cluster = {job: [f"127.0.0.1:{next(ports)}" for _ in range(n)] for job, n in sizes.items()}
    task = {"type": "chief", "index": 0}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    os.environ["TFDP_START_TIMEOUT"] = "0"
    # A call that waits for another holds a thread, here of all tasks together.
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=4 * (workers + ps))
    return [
        tf.distribute.Server(
            tf.train.ClusterSpec(cluster),
            job_name=job,
            task_index=i,
            protocol="grpc",
            config=config,
        )
        for job in ("worker", "ps")
        for i in range(sizes[job])
    ]


def main(output: str, workers: str, ps: str, *names: str) -> None:
    gc.disable()
    import tensorflow as tf

    servers = start(int(workers), int(ps))
    import servers_checks

    # What the imports have made lasts; it is not looked through again and again.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
    # As in fit/conftest.py: for a few steps it takes longer than it saves.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    with open(output, "a") as file:
        for line in servers_checks.run(names):
            file.write(json.dumps(line) + "\n")
            file.flush()
    sys.stdout.flush()
    del servers
    os._exit(0)  # the servers would wait for ever


if __name__ == "__main__":
    main(*sys.argv[1:])

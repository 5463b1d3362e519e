"""A dispatcher or a worker of tf.data service, as a process that the launcher looks after.

    python -m tfdp.data.service_task dispatcher HOST:PORT FOLDER
    python -m tfdp.data.service_task worker HOST:PORT DISPATCHER_HOST:PORT

The dispatcher keeps what it knows in a folder, so that one that is started again goes on.
"""

import os
import sys

from tfdp import address as address_lib
from tfdp.launch import task_start

# A worker that the dispatcher has not heard of for so long is lost.
_SILENT_SECONDS = 10


def main(kind: str, address: str, other: str) -> None:
    """Serve until the launcher ends this process."""
    task_start.tie_to_launcher(os.environ)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    service = tf.data.experimental.service
    port = address_lib.split(address)[1]
    if kind == "dispatcher":
        config = service.DispatcherConfig(
            port=port,
            protocol="grpc",
            work_dir=other,
            fault_tolerant_mode=True,
            # Otherwise those that train wait for minutes for what a dead worker had at hand.
            worker_timeout_ms=1000 * _SILENT_SECONDS,
        )
        server = service.DispatchServer(config)
    else:
        config = service.WorkerConfig(
            dispatcher_address=other,
            worker_address=address,
            port=port,
            protocol="grpc",
            heartbeat_interval_ms=1000,
        )
        server = service.WorkerServer(config)
    print(f"tf.data service: a {kind} at {address}", flush=True)
    server.join()


if __name__ == "__main__":
    main(*sys.argv[1:])

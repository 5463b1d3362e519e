"""The tasks of tf.data service beside those that train: a dispatcher and its workers.

processes = plan_service(2, ports=(4001, 4002, 4003), log_dir="runs/a", ...)
processes[0].task           # data:0, the dispatcher; data:1 and data:2 read and decode
address(4001)               # what tasks that train find in TFDP_DATA_SERVICE
"""

import pathlib
import sys
from collections.abc import Sequence

from tfdp.cluster import Task
from tfdp.launch.plan import TaskProcess, log_name

VARIABLE = "TFDP_DATA_SERVICE"
_HOST = "127.0.0.1"


def address(port: int) -> str:
    """Return where the dispatcher is found."""
    return f"grpc://{_HOST}:{port}"


def plan_service(
    workers: int,
    ports: Sequence[int],
    log_dir: str | pathlib.Path,
    directory: str | pathlib.Path,
) -> list[TaskProcess]:
    """Return the processes of a service on this machine.

    Args:
        workers: How many read and decode.
        ports: One for the dispatcher, then one for each worker.
        log_dir: The folder of their logs, and of what the dispatcher keeps.
        directory: The folder they run in: files of a config are named from there.
    """
    dispatcher = f"{_HOST}:{ports[0]}"
    kept = str(pathlib.Path(log_dir, "dispatcher").absolute())
    words = [("dispatcher", dispatcher, kept)]
    words += [("worker", f"{_HOST}:{port}", dispatcher) for port in ports[1 : workers + 1]]
    return [
        TaskProcess(
            task=Task("data", number),
            host=_HOST,
            command=(sys.executable, "-m", "tfdp.data.service_task", *given),
            # They decode on the CPU, whatever there is.
            environment={
                "CUDA_VISIBLE_DEVICES": "-1",
                "PYTHONUNBUFFERED": "1",
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
            log=pathlib.Path(log_dir, log_name(Task("data", number))),
            directory=pathlib.Path(directory),
        )
        for number, given in enumerate(words)
    ]

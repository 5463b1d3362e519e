"""A run as a program for Ray core, which needs tfdp on the nodes and not its launcher.

python run.py           # RAY_ADDRESS names the cluster; its exit code is the run's
"""

import json
import string
from collections.abc import Sequence

from tfdp.launch.platforms.job import Job

_PROGRAM = string.Template('''\
"""$title

Written by tfdp launch --platform=ray. Each task is a process that an actor of Ray starts.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import ray

TASKS = $tasks
RESOURCES = $resources
COMMAND = $command
ENVIRONMENT = $environment
SECRETS = $secrets  # their values are taken from here
DIRECTORY = $directory


@ray.remote(max_restarts=0)
class Task:
    def address(self):
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        return f"{ray.util.get_node_ip_address()}:{self.port}"

    def start(self, environment):
        directory = DIRECTORY if os.path.isdir(DIRECTORY) else None
        self.process = subprocess.Popen(
            COMMAND, cwd=directory, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )
        os.set_blocking(self.process.stdout.fileno(), False)

    def look(self):
        code = self.process.poll()
        return self.process.stdout.read() or b"", code

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # Ray leaves behind what an actor has started


ray.init(namespace="tfdp", log_to_driver=False)
group = ray.util.placement_group(RESOURCES, strategy="SPREAD")
ray.get(group.ready())
actors = []
for number, resources in enumerate(RESOURCES):
    place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=number
    )
    actors.append(
        Task.options(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), scheduling_strategy=place
        ).remote()
    )
cluster = {}
for (kind, _), address in zip(TASKS, ray.get([actor.address.remote() for actor in actors])):
    cluster.setdefault(kind, []).append(address)
secrets = {name: os.environ[name] for name in SECRETS}
for number, actor in enumerate(actors):
    own = {"TFDP_CLUSTER": json.dumps(cluster), "TFDP_TASK_INDEX": str(number)}
    ray.get(actor.start.remote({**ENVIRONMENT, **secrets, **own}))
codes = {}
serves = {"ps"} | ({"worker"} if any(kind == "ps" for kind, _ in TASKS) else set())
while True:
    for number, actor in enumerate(actors):
        if number in codes:
            continue
        kind, index = TASKS[number]
        text, code = ray.get(actor.look.remote())
        for line in text.decode(errors="replace").splitlines(keepends=True):
            sys.stdout.write(line if number == 0 else f"[{kind}:{index}] {line}")
        sys.stdout.flush()
        if code is not None:
            codes[number] = code
    waited = [number for number, (kind, _) in enumerate(TASKS) if kind not in serves]
    if any(codes.values()) or all(number in codes for number in waited):
        break
    time.sleep(0.5)
for number, actor in enumerate(actors):
    if number not in codes:
        ray.get(actor.end.remote())
failed = [code for code in codes.values() if code]
sys.exit((failed[0] if failed[0] > 0 else 128 - failed[0]) if failed else 0)
''')


def render(job: Job, resources: Sequence[dict[str, float]]) -> str:
    """Return the program of a run."""
    plain = {name: value for name, value in job.environment.items() if name not in job.secrets}
    return _PROGRAM.substitute(
        title=f"Runs {job.shape} on a cluster of Ray.",
        tasks=repr([(task.type, task.index) for task in job.shape.tasks]),
        resources=json.dumps(list(resources)),
        command=repr([job.python, *job.command[1:]]),
        environment=repr({**plain, **job.task_environment()}),
        secrets=repr(sorted(job.secrets)),
        directory=repr(job.directory),
    )

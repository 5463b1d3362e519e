"""What is asked for on the command line, before a platform says where it runs.

job = Job("digits", Shape(workers=2), ("train.py", "--lr=0.1"), seed=7, log_dir="/shared/runs/a")
job.task_environment()      # TFDP_SEED="7", PYTHONUNBUFFERED="1", ...
"""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence

from tfdp.cluster import EVALUATOR_VARIABLE, Cluster
from tfdp.error import Error
from tfdp.launch import data_workers, network, plan, redaction
from tfdp.launch.shape import Shape


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a cluster.

    Attributes:
        name: What the platform calls it.
        shape: How many tasks of each kind.
        script: "SCRIPT.py" or "-m", "MODULE", then its arguments.
        seed: TFDP_SEED of every task.
        log_dir: The folder of the tasks' logs, an absolute path.
        directory: The folder that the tasks run in, an absolute path.
        environment: Variables of every task, by name.
        secrets: Those of them whose values stand in no artefact, argument list or log.
        run: What the run is called in TFDP_EVALUATOR: another name for each launch.
        python: The interpreter.
        gpus_per_task: GPUs of each task that trains; 0 for none.
        max_restarts: Failures without progress that are followed by a new start.
        preempt_seconds: From SIGTERM to SIGKILL: a training saves what it has.
        trust_network: Whether addresses that the whole internet may reach are allowed.
    """

    name: str
    shape: Shape
    script: tuple[str, ...]
    seed: int
    log_dir: str
    directory: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    secrets: frozenset[str] = frozenset()
    run: str = "1"
    python: str = sys.executable
    gpus_per_task: int = 0
    max_restarts: int = 0
    preempt_seconds: float = 25.0
    trust_network: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """The program of every task, and its arguments."""
        return (self.python, "-m", "tfdp.run", *self.script)

    def task_environment(self) -> dict[str, str]:
        """Return what every task gets of tfdp's own, beside `environment`."""
        return {
            "TFDP_SEED": str(self.seed),
            **({EVALUATOR_VARIABLE: self.run} if self.shape.evaluator else {}),
            **({network.TRUST_VARIABLE: "1"} if self.trust_network else {}),
            # Else the last lines before a crash would be lost in a buffer.
            "PYTHONUNBUFFERED": "1",
        }

    def secret_names(self) -> list[str]:
        """Return the variables whose values must stand in no script, which is shown around.

        Also those whose names speak of a secret, whatever they were given.
        """
        return sorted(
            name
            for name in self.environment
            if name in self.secrets or redaction.is_secret_name(name)
        )

    def open_environment(self) -> dict[str, str]:
        """Return `environment` without those."""
        secrets = self.secret_names()
        return {name: value for name, value in self.environment.items() if name not in secrets}

    def plan(self, cluster: Cluster, python: str = "") -> list[plan.TaskProcess]:
        """Return the processes of the tasks on a cluster; `python` is the interpreter there."""
        return plan.plan(
            cluster,
            self.script,
            seed=self.seed,
            log_dir=self.log_dir,
            python=python or self.python,
            environ={**self.environment, **self.task_environment()},
            run=self.run,
        )


def read_variables(
    words: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, str], frozenset[str]]:
    """Read --env NAME=VALUE, and --env NAME, which takes the value that it has here.

    Returns:
        The variables, and the names of those that were given without a value: secrets.

    Raises:
        Error: No name of a variable, or one that is not set here; one line.
    """
    variables, secrets = {}, set()
    for word in words:
        name, has_value, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise Error(f"--env={word!r}: write --env=NAME=VALUE, or --env=NAME.")
        if not has_value:
            if name not in environ:
                raise Error(f"--env={name}: {name} is not set here. Set it, or give it a value.")
            value = environ[name]
            secrets.add(name)
        if name == "TF_CONFIG" or (name.startswith("TFDP_") and name != data_workers.VARIABLE):
            raise Error(f"--env={name}: tfdp sets that itself. Leave it out.")
        variables[name] = value
        if has_value:
            secrets.discard(name)
    return variables, frozenset(secrets)


def platform_name(text: str) -> str:
    """Return a name that every platform takes: a DNS label of at most 40 characters."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".rstrip("-")

"""--platform=kubernetes: the tasks are pods; kubectl makes them and shows what becomes of them.

    tfdp launch --platform=kubernetes --image=registry/image:1 --workers=4 -- train.py

kubectl owns the cluster's address and the credentials; tfdp starts it and reads what it prints.
`render` gives the objects as YAML, which `kubectl create -f` takes without tfdp.
"""

import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch.platforms import kubernetes_objects as objects_lib
from tfdp.launch.platforms import yaml_text
from tfdp.launch.platforms.job import Job
from tfdp.launch.platforms.kubernetes_watch import Watch, selector

# The resource of each kind's object that says how the run has ended.
RESOURCES = {
    "job": "job.batch",
    "jobset": "jobset.jobset.x-k8s.io",
    "tfjob": "tfjob.kubeflow.org",
    "trainjob": "trainjob.trainer.kubeflow.org",
}
# What a run leaves behind that goes on without the launcher.
_KINDS_OF_A_RUN = {
    "job": "job,service,secret",
    "jobset": "jobset,secret",
    "tfjob": "tfjob,secret",
    "trainjob": "trainjob,trainingruntime,secret",
}
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")


def define(add: Callable[..., Any]) -> None:
    """Define the flags of this platform."""
    add(flags.DEFINE_string, "image", "", "Kubernetes: the image of the containers, with tfdp.")
    add(flags.DEFINE_string, "namespace", "", "Kubernetes: where; default: that of the context.")
    add(
        flags.DEFINE_string,
        "kubernetes_kind",
        "auto",
        "Kubernetes: job, jobset, tfjob or trainjob; auto: job, and jobset with parameter servers.",
    )
    add(flags.DEFINE_string, "kubernetes_cpu", "", "Kubernetes: CPUs of a pod, like 4 or 500m.")
    add(flags.DEFINE_string, "kubernetes_memory", "", "Kubernetes: memory of a pod, like 8Gi.")
    add(flags.DEFINE_string, "kubernetes_python", "python", "Kubernetes: Python in the image.")
    add(
        flags.DEFINE_string,
        "kubernetes_directory",
        "",
        "Kubernetes: a folder in the image.",
    )


def render(job: Job, values: Any) -> str:
    """Return the objects of a run as YAML.

    Raises:
        Error: A flag is missing or bad, or the kind cannot run such a cluster.
    """
    pod, kind = _read(job, values)
    text = yaml_text.documents(objects_lib.objects(job, pod, kind))
    if job.secrets:
        literals = " ".join(f"--from-literal={name}=..." for name in sorted(job.secrets))
        text = (
            f"# The values of {', '.join(sorted(job.secrets))} stand in a Secret. Make it first:\n"
            f"# kubectl create secret generic {job.name}-env {literals}\n{text}"
        )
    return text


def launch(job: Job, values: Any) -> int:
    """Make the objects, show the logs, and return the exit code of the run.

    Raises:
        Error: A flag is bad, there is no kubectl, or it refuses; one line.
    """
    pod, kind = _read(job, values)
    kubectl = Kubectl(pod.namespace)
    made = objects_lib.objects(job, pod, kind)
    secret = objects_lib.secret(job, pod)
    resource = RESOURCES[kind]
    found = kubectl.run("get", resource, job.name, "--ignore-not-found", "-o", "name")
    if found.strip():
        raise Error(
            f"There is a run named {job.name} already. Choose another --job_name, or remove it: "
            f"{' '.join(kubectl.words('delete', resource, job.name))}"
        )
    pathlib.Path(job.log_dir).mkdir(parents=True, exist_ok=True)
    everything = [*([secret] if secret else []), *made]
    try:
        kubectl.run("create", "-f", "-", given=yaml_text.documents(everything))
        print(
            f"{job.shape} on Kubernetes as {kind} {job.name}, seed {job.seed}. Logs: {job.log_dir}",
            flush=True,
        )
        if values.detach:
            follow = " ".join(kubectl.words("logs", "-f", "-l", selector(job), "--prefix"))
            remove = " ".join(kubectl.words("delete", "-l", selector(job), _KINDS_OF_A_RUN[kind]))
            print(f"It goes on by itself. To follow it: {follow}\nTo end it: {remove}")
            return 0
        code = Watch(kubectl, job, kind, resource).run()
    except Error:
        # Kubernetes does not answer, or somebody has removed the run: it is not ended from here.
        raise
    except BaseException:
        _delete(kubectl, everything)
        raise
    # The run itself stays for a day, with the logs of its pods; what it needed goes.
    _delete(kubectl, everything[:-1])
    return code


class Kubectl:
    """The program kubectl.

    Args:
        namespace: Where it works; "" for that of its context.

    Raises:
        Error: It is not installed.
    """

    def __init__(self, namespace: str):
        self._program = shutil.which("kubectl")
        self._namespace = namespace
        if self._program is None:
            raise Error(
                "--platform=kubernetes needs the program kubectl, which is not on PATH. Install it "
                "(kubernetes.io/docs/tasks/tools), or write the objects with --output=FILE."
            )

    def words(self, *words: str) -> list[str]:
        """Return a command that a user can type."""
        return ["kubectl", *(["-n", self._namespace] if self._namespace else []), *words]

    def run(self, *words: str, given: str | None = None, seconds: float = 60.0) -> str:
        """Run it; return what it prints.

        Raises:
            Error: It fails, or does not answer; its last line.
        """
        try:
            done = subprocess.run(
                [str(self._program), *self.words(*words)[1:]],
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Error(f"kubectl {words[0]} has not answered for {seconds:g} s.") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Error(f"kubectl {words[0]}: {lines[-1]}")
        return done.stdout

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start it, with its output in a pipe."""
        return subprocess.Popen(
            [str(self._program), *self.words(*words)[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C comes to the launcher alone, which ends the run and says so.
            start_new_session=True,
        )


def _read(job: Job, values: Any) -> tuple[objects_lib.Pod, str]:
    """Check the flags."""
    if not values.image:
        raise Error(
            "--platform=kubernetes needs --image: the image of the containers, in which tfdp and "
            "the script are installed."
        )
    kind = values.kubernetes_kind
    if kind == "auto":
        kind = "jobset" if job.shape.ps else "job"
    if kind not in objects_lib.KINDS:
        raise Error(f"--kubernetes_kind={kind}: use one of auto, {', '.join(objects_lib.KINDS)}.")
    for flag in ("kubernetes_cpu", "kubernetes_memory"):
        value = getattr(values, flag)
        if value and not _QUANTITY.fullmatch(value):
            raise Error(f"--{flag}={value}: write a number like 4, 500m or 8Gi.")
    namespace = values.namespace
    if namespace and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", namespace):
        raise Error(f"--namespace={namespace}: use small letters, digits and dashes.")
    pod = objects_lib.Pod(
        values.image,
        namespace,
        values.kubernetes_cpu,
        values.kubernetes_memory,
        job.gpus_per_task,
        values.kubernetes_python,
        values.kubernetes_directory,
    )
    return pod, kind


def _delete(kubectl: Kubectl, made: Sequence[dict[str, Any]]) -> None:
    """Remove what was made, whatever stands against a part of it."""
    given = yaml_text.documents(made)
    try:
        kubectl.run("delete", "--ignore-not-found", "--wait=false", "-f", "-", given=given)
    except Error as error:
        sys.stderr.write(f"tfdp: Not everything could be removed. {error}\n")

"""Follows a run on Kubernetes to its end: its pods, their logs, and how each of them ended.

    code = Watch(kubectl, job, "job", "job.batch").run()

A pod that has ended may be gone at the next look: its log is read from when it begins.
"""

import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from tfdp.cluster import Task
from tfdp.error import Error
from tfdp.launch import plan
from tfdp.launch.output import printable
from tfdp.launch.platforms.job import Job

_POLL_SECONDS = 1.0
# How long Kubernetes may answer nothing before the launcher gives up; the run goes on.
_PATIENCE_SECONDS = 60.0
# Conditions that say that a run has ended, and whether well.
_ENDS = {"Complete": True, "Completed": True, "Succeeded": True, "Failed": False}
_INDEX = "batch.kubernetes.io/job-completion-index"
# Of a pod that was killed with the others, that another one has left, or that was preempted.
_CONSEQUENCES = (137, 138, 143)


class Watch:
    """One run.

    Args:
        kubectl: Runs kubectl.
        job: The run.
        kind: What it is made as: "job", "jobset", ...
        resource: The resource that says how it ended.
    """

    def __init__(self, kubectl: Any, job: Job, kind: str, resource: str):
        self._kubectl, self._job, self._kind, self._resource = kubectl, job, kind, resource
        self._readers: dict[str, tuple[subprocess.Popen[bytes], threading.Thread]] = {}
        self._ended: dict[str, tuple[str, Task, int, str]] = {}  # by pod: when, task, code, why
        self._names: dict[Task, str] = {}
        self._said: set[str] = set()

    def run(self) -> int:
        """Return the exit code of the run.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: SIGTERM.
            Error: Kubernetes does not answer, or the run was removed.
        """
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            answered = time.monotonic()
            while True:
                try:
                    is_over = self._look()
                    answered = time.monotonic()
                except Error:
                    if time.monotonic() - answered > _PATIENCE_SECONDS:
                        raise
                    is_over = None
                if is_over is not None:
                    return self._end(is_over)
                time.sleep(_POLL_SECONDS)
        finally:
            signal.signal(signal.SIGTERM, before)
            for process, _ in self._readers.values():
                process.kill()
                process.wait()

    def _look(self) -> bool | None:
        """Read how the run stands; return whether it has ended well, None while it goes on."""
        # First the run: the pods of one that has ended are all there.
        text = self._kubectl.run(
            "get", self._resource, self._job.name, "--ignore-not-found", "-o", "json"
        )
        if not text.strip():
            raise Error(f"{self._kind} {self._job.name} is gone: somebody has removed it.")
        pods = self._kubectl.run("get", "pods", "-l", selector(self._job), "-o", "json")
        for pod in json.loads(pods)["items"]:
            self._see(pod)
        for condition in json.loads(text).get("status", {}).get("conditions", []):
            if condition["type"] in _ENDS and condition["status"] == "True":
                return _ENDS[condition["type"]]
        return None

    def _see(self, pod: dict[str, Any]) -> None:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        uid = pod["metadata"].get("uid", name)
        task = self._task(pod["metadata"])
        if task is None:
            return
        self._names[task] = name
        if status.get("phase") in ("Running", "Succeeded", "Failed") and uid not in self._readers:
            self._follow(uid, name, task)
        for container in status.get("containerStatuses", []):
            state = container.get("state", {})
            if "terminated" in state:
                ended = state["terminated"]
                self._ended[uid] = (
                    ended.get("finishedAt") or "",
                    task,
                    int(ended["exitCode"]),
                    ended.get("reason") or "",
                )
            waiting = state.get("waiting", {})
            if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
                self._say(f"{task} (pod {name}): {waiting['reason']}: {waiting.get('message', '')}")
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                self._say(f"{task} (pod {name}) waits for a node: {condition.get('message', '')}")

    def _task(self, metadata: dict[str, Any]) -> Task | None:
        labels, notes = metadata.get("labels", {}), metadata.get("annotations", {})
        number = notes.get(_INDEX, labels.get(_INDEX, ""))
        kind = labels.get("jobset.sigs.k8s.io/replicatedjob-name", "")
        if self._kind == "tfjob":
            kind = labels.get("training.kubeflow.org/replica-type", "")
            number = labels.get("training.kubeflow.org/replica-index", "")
        if not number.isdecimal():
            return None
        if self._kind in ("jobset", "tfjob"):
            return Task(kind, int(number))
        tasks = self._job.shape.tasks
        return tasks[int(number)] if int(number) < len(tasks) else None

    def _follow(self, uid: str, pod: str, task: Task) -> None:
        """Let kubectl write a pod's log to a file, and the chief's to the screen."""
        process = self._kubectl.start("logs", "-f", pod)
        path = pathlib.Path(self._job.log_dir, plan.log_name(task))
        shows = task == self._job.shape.tasks[0]
        thread = threading.Thread(target=_copy, args=(process.stdout, path, shows), daemon=True)
        thread.start()
        self._readers[uid] = process, thread

    def _end(self, is_well: bool) -> int:
        for process, thread in self._readers.values():
            thread.join(10.0)
            process.kill()
        if is_well:
            return 0
        failed = sorted(
            (one for one in self._ended.values() if one[2]), key=lambda one: (one[0], str(one[1]))
        )
        for _, task, code, why in failed:
            pod = self._names.get(task, "")
            self._say(f"{task} (pod {pod}) ended with code {code}{f' ({why})' if why else ''}.")
        own = [one for one in failed if one[2] not in _CONSEQUENCES] or failed
        if not own:
            self._say(f"{self._kind} {self._job.name} has failed; no pod says why.")
            return 1
        _, task, code, _ = own[0]
        log = pathlib.Path(self._job.log_dir, plan.log_name(task))
        self._say(f"{task} exited with code {code}. Log: {log}")
        return code

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            sys.stderr.write(printable(f"tfdp: {line}").decode())
            sys.stderr.flush()


def selector(job: Job) -> str:
    """Return the label that all objects and pods of a run have."""
    return f"app.kubernetes.io/instance={job.name}"


def _copy(stream: Any, path: pathlib.Path, shows: bool) -> None:
    with open(path, "ab") as file:
        while data := stream.read1(1 << 16):
            file.write(data)
            file.flush()
            if shows:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()


def _terminate(number: int, frame: Any) -> None:
    del frame
    raise SystemExit(128 + number)

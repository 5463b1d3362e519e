"""The objects of Kubernetes that a run is made of. Pure: nothing is looked up.

    objects(job, Pod(image="registry/image:1"), "job")      # a Service and an Indexed Job

    job         an Indexed Job (Kubernetes 1.31 or newer): any kind of cluster
    jobset      a JobSet (jobset.sigs.k8s.io, v1alpha2): a job for each kind of task, all of which
                start again together; it succeeds with the chief
    tfjob       a TFJob of Kubeflow's training operator (v1), which sets TF_CONFIG itself
    trainjob    a TrainJob of Kubeflow Trainer (v1alpha1), with a runtime of its own: workers alone

In a Job and a JobSet every pod gets the same text, TFDP_CLUSTER, and its number from Kubernetes:
see tfdp.launch.discovery. Exit codes: 2, a bad setting, ends the run at once; 143, preempted and
saved, and a pod that Kubernetes moves, cost none of the restarts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from tfdp.error import Error
from tfdp.launch import discovery, plan
from tfdp.launch.platforms.job import Job

KINDS = ("job", "jobset", "tfjob", "trainjob")
PORT = 2222
# Seconds that a pod has from SIGTERM to SIGKILL: a training saves what it has.
_GRACE = 120
# How long a finished run is kept, with the logs of its pods.
_KEPT_SECONDS = 86400


@dataclasses.dataclass(frozen=True)
class Pod:
    """What every pod is made of.

    Attributes:
        image: Its container's image, in which tfdp is installed.
        namespace: Where all objects are made; "" for that of kubectl's context.
        cpu: CPUs it asks for, as Kubernetes writes them ("4", "500m"); "" for none.
        memory: The same for memory ("8Gi").
        gpus: GPUs of each pod that trains.
        python: The interpreter in the image.
        directory: The folder in the image that the tasks run in; "" for the image's own.
    """

    image: str
    namespace: str = ""
    cpu: str = ""
    memory: str = ""
    gpus: int = 0
    python: str = "python"
    directory: str = ""


def objects(job: Job, pod: Pod, kind: str) -> list[dict[str, Any]]:
    """Return the objects of a run, in the order in which they are made.

    Raises:
        Error: The kind cannot run such a cluster.
    """
    return _MAKERS[kind](job, pod)


def secret(job: Job, pod: Pod) -> dict[str, Any] | None:
    """Return the object that holds the values of `job.secrets`; None without any."""
    if not job.secrets:
        return None
    values = {name: job.environment[name] for name in sorted(job.secrets)}
    more = {"type": "Opaque", "stringData": values}
    return _object("v1", "Secret", job, pod, more, _secret_name(job))


def hosts(job: Job, kind: str) -> list[str]:
    """Return the host name of each task's pod, in the order of the tasks."""
    name = job.name
    if kind == "jobset":
        return [f"{name}-{task.type}-0-{task.index}.{name}" for task in job.shape.tasks]
    if kind == "trainjob":
        return [f"{name}-node-0-{number}.{name}" for number in range(len(job.shape))]
    return [f"{name}-{number}.{name}" for number in range(len(job.shape))]


def _job(job: Job, pod: Pod) -> list[dict[str, Any]]:
    count = len(job.shape)
    service = {
        "clusterIP": "None",
        # The tasks look for one another before they are ready.
        "publishNotReadyAddresses": True,
        "selector": {"job-name": job.name},
    }
    spec = {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        # A pod that ends comes back when it has ended, not beside it.
        "podReplacementPolicy": "Failed",
        # When one fails, all others end with 138: one incident fails every pod.
        "backoffLimit": count * job.max_restarts,
        "podFailurePolicy": _failure_policy(),
        "ttlSecondsAfterFinished": _KEPT_SECONDS,
        "template": _template(job, pod, "job", subdomain=job.name),
    }
    return [
        _object("v1", "Service", job, pod, {"spec": service}),
        _object("batch/v1", "Job", job, pod, {"spec": spec}),
    ]


def _jobset(job: Job, pod: Pod) -> list[dict[str, Any]]:
    replicated, first = [], 0
    for kind, count in job.shape.counts.items():
        if not count:
            continue
        trains = plan.trains(kind, bool(job.shape.ps))
        replicated.append(
            {
                "name": kind,
                "replicas": 1,
                "template": {
                    "spec": {
                        "completionMode": "Indexed",
                        "completions": count,
                        "parallelism": count,
                        # The JobSet starts all jobs again, or none.
                        "backoffLimit": 0,
                        "podFailurePolicy": _failure_policy(),
                        "template": _template(job, pod, "jobset", first=first, gpus=trains),
                    }
                },
            }
        )
        first += count
    spec = {
        "network": {
            "enableDNSHostnames": True,
            "publishNotReadyAddresses": True,
            "subdomain": job.name,
        },
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            "restartStrategy": "BlockingRecreate",
            "rules": [
                {
                    "name": "badSetting",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "successPolicy": {
            "operator": "All",
            "targetReplicatedJobs": ["chief" if job.shape.chief else "worker"],
        },
        "ttlSecondsAfterFinished": _KEPT_SECONDS,
        "replicatedJobs": replicated,
    }
    return [_object("jobset.x-k8s.io/v1alpha2", "JobSet", job, pod, {"spec": spec})]


def _tfjob(job: Job, pod: Pod) -> list[dict[str, Any]]:
    names = {"chief": "Chief", "worker": "Worker", "ps": "PS", "evaluator": "Evaluator"}
    replicas = {
        names[kind]: {
            "replicas": count,
            # 130, 137, 138 and 143 start again; 1 and 2 end the run.
            "restartPolicy": "ExitCode",
            "template": _template(
                job,
                pod,
                "tfjob",
                gpus=plan.trains(kind, bool(job.shape.ps)),
                container="tensorflow",
            ),
        }
        for kind, count in job.shape.counts.items()
        if count
    }
    spec = {
        "runPolicy": {
            "backoffLimit": len(job.shape) * job.max_restarts,
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
        },
        "tfReplicaSpecs": replicas,
    }
    return [_object("kubeflow.org/v1", "TFJob", job, pod, {"spec": spec})]


def _trainjob(job: Job, pod: Pod) -> list[dict[str, Any]]:
    if job.shape.chief or job.shape.ps or job.shape.evaluator:
        raise Error(
            "--kubernetes_kind=trainjob runs workers alone: a TrainJob has nodes of one kind. Use "
            "--kubernetes_kind=jobset for a chief, parameter servers or an evaluator."
        )
    count = len(job.shape)
    runtime = {
        "mlPolicy": {"numNodes": count},
        "template": {
            "spec": {
                "network": {"publishNotReadyAddresses": True, "subdomain": job.name},
                "failurePolicy": {"maxRestarts": job.max_restarts},
                "replicatedJobs": [
                    {
                        "name": "node",
                        "replicas": 1,
                        "template": {
                            "metadata": {
                                "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                            },
                            "spec": {
                                "backoffLimit": 0,
                                "template": _template(job, pod, "trainjob", container="node"),
                            },
                        },
                    }
                ],
            }
        },
    }
    train = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "TrainingRuntime",
            "name": job.name,
        },
        "trainer": {"numNodes": count},
    }
    version = "trainer.kubeflow.org/v1alpha1"
    return [
        _object(version, "TrainingRuntime", job, pod, {"spec": runtime}),
        _object(version, "TrainJob", job, pod, {"spec": train}),
    ]


_MAKERS: dict[str, Callable[[Job, Pod], list[dict[str, Any]]]] = {
    "job": _job,
    "jobset": _jobset,
    "tfjob": _tfjob,
    "trainjob": _trainjob,
}


def _object(
    version: str, kind: str, job: Job, pod: Pod, content: dict[str, Any], name: str = ""
) -> dict[str, Any]:
    """Return an object of a kind with the name of the job, or another."""
    namespace = {"namespace": pod.namespace} if pod.namespace else {}
    labels = {"app.kubernetes.io/managed-by": "tfdp", "app.kubernetes.io/instance": job.name}
    metadata = {"name": name or job.name, **namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _failure_policy() -> dict[str, Any]:
    def on_code(action: str, code: int) -> dict[str, Any]:
        codes = {"containerName": "task", "operator": "In", "values": [code]}
        return {"action": action, "onExitCodes": codes}

    disrupted = {"type": "DisruptionTarget", "status": "True"}
    moved = {"action": "Ignore", "onPodConditions": [disrupted]}
    return {"rules": [on_code("FailJob", 2), on_code("Ignore", 143), moved]}


def _template(
    job: Job,
    pod: Pod,
    kind: str,
    *,
    subdomain: str = "",
    first: int = 0,
    gpus: bool = True,
    container: str = "task",
) -> dict[str, Any]:
    """Return what a pod is made from."""
    asked = {"cpu": pod.cpu, "memory": pod.memory}
    resources: dict[str, Any] = {}
    if requests := {name: value for name, value in asked.items() if value}:
        resources["requests"] = requests
    if pod.gpus and gpus:
        resources["limits"] = {"nvidia.com/gpu": pod.gpus}
    name = "tfjob-port" if kind == "tfjob" else "tfdp"
    port = {"name": name, "containerPort": PORT, "protocol": "TCP"}
    one = {
        "name": container,
        "image": pod.image,
        **({"workingDir": pod.directory} if pod.directory else {}),
        "command": [_literal(word) for word in (pod.python, *job.command[1:])],
        "env": _variables(job, kind, first),
        "ports": [port],
        **({"resources": resources} if resources else {}),
    }
    restart = {} if kind == "tfjob" else {"restartPolicy": "Never"}
    domain = {"subdomain": subdomain} if subdomain else {}
    labels = {"app.kubernetes.io/instance": job.name}
    return {
        "metadata": {"labels": labels},
        "spec": {
            **domain,
            **restart,
            "terminationGracePeriodSeconds": _GRACE,
            "containers": [one],
        },
    }


def _variables(job: Job, kind: str, first: int) -> list[dict[str, Any]]:
    variables = {**job.environment, **job.task_environment()}
    if kind != "tfjob":
        addresses = [f"{host}:{PORT}" for host in hosts(job, kind)]
        cluster = job.shape.cluster(addresses)
        variables[discovery.CLUSTER_VARIABLE] = discovery.cluster_text(cluster)
    if first:
        variables[discovery.FIRST_VARIABLE] = str(first)
    return [_variable(job, name, value) for name, value in variables.items()]


def _variable(job: Job, name: str, value: str) -> dict[str, Any]:
    if name not in job.secrets:
        return {"name": name, "value": _literal(value)}
    reference = {"name": _secret_name(job), "key": name}
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _literal(text: str) -> str:
    """Return text in which Kubernetes replaces no $(NAME): $$ stands for one $."""
    return text.replace("$(", "$$(")


def _secret_name(job: Job) -> str:
    return f"{job.name}-env"

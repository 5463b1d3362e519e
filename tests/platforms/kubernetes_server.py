"""An API server of Kubernetes for tests, with controllers of Jobs and JobSets: pods are processes.

    with serve(network, folder) as server:
        subprocess.run(["kubectl", "get", "pods"], env={**os.environ, "KUBECONFIG": server.config})

What kubectl asks for is answered as the real one does: create, get, list by labels, logs -f,
delete. Each pod is a process on a host of its own (a network namespace), started from the object's
own command and env and nothing else of the test, with the names of the run's pods in its hosts
file. The controllers follow the API's reference for what tfdp writes: completion indexes,
podFailurePolicy, backoffLimit, replicated jobs, BlockingRecreate, successPolicy. They are no real
controllers: how those fail is not shown here.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid

from aiohttp import web

# Resources by their path: kind, and the name that kubectl prints.
KINDS = {
    ("api/v1", "services"): "Service",
    ("api/v1", "secrets"): "Secret",
    ("api/v1", "pods"): "Pod",
    ("apis/batch/v1", "jobs"): "Job",
    ("apis/jobset.x-k8s.io/v1alpha2", "jobsets"): "JobSet",
}
PREEMPTED, LOST = 143, 138


@dataclasses.dataclass
class Pod:
    """A pod: its object, its process, and where what it prints goes."""

    body: dict
    process: subprocess.Popen
    log: pathlib.Path
    index: int


class Server:
    """The objects of one namespace, and what is made of them."""

    def __init__(self, network, folder, python_path):
        self.objects = {}
        self.on_start = None  # called with the first pod
        self.started = []  # every pod that was ever started: its name
        self._network, self._folder = network, pathlib.Path(folder)
        self._python_path = python_path
        self._slots = {}
        self._pods = {}
        self._tasks = set()
        self.config = str(self._folder / "kubeconfig")

    # -- the API ------------------------------------------------------------------------------

    def routes(self):
        """Return the application."""
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/api", self._api)
        app.router.add_get("/apis", self._apis)
        app.router.add_get("/openapi/v3", self._openapi)
        app.router.add_get("/openapi/v3/{group:.+}", self._openapi_of)
        for group in {group for group, _ in KINDS}:
            app.router.add_get(f"/{group}", self._resources)
            items = f"/{group}/namespaces/{{namespace}}/{{resource}}"
            app.router.add_post(items, self._create)
            app.router.add_get(items, self._list)
            app.router.add_get(items + "/{name}", self._get)
            app.router.add_delete(items + "/{name}", self._delete)
            app.router.add_get(items + "/{name}/log", self._log)
        return app

    async def _version(self, request):
        return web.json_response({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})

    async def _api(self, request):
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def _apis(self, request):
        groups = []
        for group, _ in KINDS:
            if group.startswith("apis/"):
                name, version = group.removeprefix("apis/").split("/")
                one = {"groupVersion": f"{name}/{version}", "version": version}
                groups.append({"name": name, "versions": [one], "preferredVersion": one})
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    async def _resources(self, request):
        group = request.path.strip("/")
        verbs = ["create", "delete", "get", "list", "patch"]
        resources = [
            {
                "name": resource,
                "singularName": resource.rstrip("s"),
                "namespaced": True,
                "kind": kind,
                "verbs": verbs,
            }
            for (at, resource), kind in KINDS.items()
            if at == group
        ]
        version = group.removeprefix("apis/").removeprefix("api/")
        return web.json_response(
            {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        )

    async def _openapi(self, request):
        paths = {group: {"serverRelativeURL": f"/openapi/v3/{group}?hash=1"} for group, _ in KINDS}
        return web.json_response({"paths": paths})

    async def _openapi_of(self, request):
        """Say that the server checks fields itself, so that kubectl leaves it to do so."""
        group = request.match_info["group"]
        paths = {}
        for (at, resource), kind in KINDS.items():
            if at != group:
                continue
            name, _, version = at.removeprefix("apis/").removeprefix("api/").rpartition("/")
            paths[f"/{at}/namespaces/{{namespace}}/{resource}/{{name}}"] = {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "x-kubernetes-group-version-kind": {
                        "group": name,
                        "version": version,
                        "kind": kind,
                    },
                }
            }
        return web.json_response({"openapi": "3.0.0", "info": {}, "paths": paths})

    async def _create(self, request):
        body = await request.json()
        resource, name = request.match_info["resource"], body["metadata"]["name"]
        if (resource, name) in self.objects:
            return _problem(409, "AlreadyExists", f'{resource} "{name}" already exists')
        body["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "namespace": request.match_info["namespace"],
            "resourceVersion": "1",
        }
        self.objects[resource, name] = body
        runs = {"jobs": self._run_job_object, "jobsets": self._run_jobset}
        if resource in runs:
            task = asyncio.get_running_loop().create_task(runs[resource](body))
            self._tasks.add(task)
        return web.json_response(body, status=201)

    async def _get(self, request):
        key = request.match_info["resource"], request.match_info["name"]
        if key not in self.objects:
            return _problem(404, "NotFound", f'{key[0]} "{key[1]}" not found')
        return web.json_response(self.objects[key])

    async def _list(self, request):
        resource = request.match_info["resource"]
        wanted = dict(
            part.split("=") for part in request.query.get("labelSelector", "").split(",") if part
        )
        items = [
            body
            for (kind, _), body in self.objects.items()
            if kind == resource and wanted.items() <= body["metadata"].get("labels", {}).items()
        ]
        kind = next(kind for (_, name), kind in KINDS.items() if name == resource)
        return web.json_response({"kind": f"{kind}List", "apiVersion": "v1", "items": items})

    async def _delete(self, request):
        key = request.match_info["resource"], request.match_info["name"]
        body = self.objects.pop(key, None)
        if body is None:
            return _problem(404, "NotFound", f'{key[0]} "{key[1]}" not found')
        await self._end_pods(body["metadata"]["name"])
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _log(self, request):
        pod = self._pods[request.match_info["name"]]
        response = web.StreamResponse()
        await response.prepare(request)
        with open(pod.log, "rb") as file:
            while True:
                ended = pod.process.poll() is not None
                if data := file.read():
                    await response.write(data)
                elif ended or request.query.get("follow") != "true":
                    return response
                else:
                    await asyncio.sleep(0.1)

    # -- the controllers ----------------------------------------------------------------------

    async def _run_job_object(self, body):
        name, spec = body["metadata"]["name"], body["spec"]
        hosts = {i: f"{name}-{i}.{spec['template']['spec']['subdomain']}" for i in range(99)}
        ends, reason = await self._run_job(name, name, spec, hosts, {})
        body.setdefault("status", {})["conditions"] = [
            {"type": ends, "status": "True", "reason": reason}
        ]

    async def _run_job(self, run, name, spec, hosts, labels):
        """Run an Indexed Job to its end; return its condition and the reason."""
        count, failures = spec["completions"], 0
        pods = {}
        waiting = set(range(count))
        done = set()
        while len(done) < count:
            if (self._kind_of(run), run) not in self.objects:
                return "Failed", "Deleted"
            for index in sorted(waiting):
                self._set_slot(hosts[index])
                pods[index] = self._start(run, name, index, spec, hosts, labels)
            waiting.clear()
            await asyncio.sleep(0.1)
            for index, pod in list(pods.items()):
                code = pod.process.poll()
                if code is None:
                    continue
                del pods[index]
                code = 128 - code if code < 0 else code
                _has_ended(pod, code)
                if not code:
                    done.add(index)
                    continue
                action = _action(spec.get("podFailurePolicy", {}), code)
                if action == "FailJob":
                    await self._end_pods(run, name)
                    return "Failed", "PodFailurePolicy"
                failures += action == "Count"
                if failures > spec["backoffLimit"]:
                    await self._end_pods(run, name)
                    return "Failed", "BackoffLimitExceeded"
                waiting.add(index)
        return "Complete", "CompletionsReached"

    async def _run_jobset(self, body):
        run, spec = body["metadata"]["name"], body["spec"]
        domain = spec["network"]["subdomain"]
        policy, restarts = spec["failurePolicy"], 0
        while True:
            jobs = {}
            for one in spec["replicatedJobs"]:
                kind, inner = one["name"], one["template"]["spec"]
                hosts = {i: f"{run}-{kind}-0-{i}.{domain}" for i in range(inner["completions"])}
                for host in hosts.values():
                    self._set_slot(host)
                labels = {"jobset.sigs.k8s.io/replicatedjob-name": kind}
                jobs[kind] = asyncio.get_running_loop().create_task(
                    self._run_job(run, f"{run}-{kind}-0", inner, hosts, labels)
                )
            targets = spec["successPolicy"]["targetReplicatedJobs"]
            ends = reason = ""
            while not ends:
                await asyncio.sleep(0.1)
                results = {kind: job.result() for kind, job in jobs.items() if job.done()}
                failed = [why for end, why in results.values() if end == "Failed"]
                if failed:
                    ends, reason = "Failed", failed[0]
                elif all(results.get(kind, ("",))[0] == "Complete" for kind in targets):
                    ends, reason = "Completed", "AllJobsCompleted"
            for job in jobs.values():
                job.cancel()
            await self._end_pods(run)
            fails = [r for r in policy.get("rules", []) if reason in r["onJobFailureReasons"]]
            may = ends == "Failed" and not fails and restarts < policy["maxRestarts"]
            if reason == "Deleted" or not may:
                break
            restarts += 1
            body.setdefault("status", {})["restarts"] = restarts
        condition = {"type": ends, "status": "True", "reason": reason}
        body.setdefault("status", {})["conditions"] = [condition]

    # -- pods ---------------------------------------------------------------------------------

    def _kind_of(self, run):
        return "jobsets" if ("jobsets", run) in self.objects else "jobs"

    def _set_slot(self, host):
        self._slots.setdefault(host, len(self._slots))

    def _start(self, run, job, index, spec, hosts, labels):
        template = spec["template"]
        (container,) = template["spec"]["containers"]
        name = f"{job}-{index}-{uuid.uuid4().hex[:5]}"
        variables = {}
        for one in container["env"]:
            value = one.get("value")
            if value is None:
                at = one["valueFrom"]["secretKeyRef"]
                value = self.objects["secrets", at["name"]]["stringData"][at["key"]]
            variables[one["name"]] = value.replace("$$(", "$(")
        environment = {
            # What an image has: its own PATH, and Python's packages.
            "PATH": os.environ["PATH"],
            "PYTHONPATH": self._python_path,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "HOME": str(self._folder),
            **variables,
            "JOB_COMPLETION_INDEX": str(index),
        }
        log = self._folder / f"{name}.log"
        slot = self._slots[hosts[index]]
        with open(log, "wb") as output:
            process = self._network.start(
                slot,
                [word.replace("$$(", "$(") for word in container["command"]],
                cwd=container["workingDir"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        body = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "uid": str(uuid.uuid4()),
                "namespace": "default",
                "labels": {**template["metadata"]["labels"], **labels},
                "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            },
            "spec": template["spec"],
            "status": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]},
        }
        pod = self._pods[name] = Pod(body, process, log, index)
        self.objects["pods", name] = body
        self.started.append(name)
        if self.on_start is not None:
            self.on_start()
            self.on_start = None
        return pod

    async def _end_pods(self, run, job=""):
        """End all processes of a run, or of one of its jobs."""
        mine = [
            pod
            for name, pod in self._pods.items()
            if pod.process.poll() is None
            and pod.body["metadata"]["labels"]["app.kubernetes.io/instance"] == run
            and name.startswith(job)
        ]
        for pod in mine:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
        for pod in mine:
            while pod.process.poll() is None:
                await asyncio.sleep(0.02)
            _has_ended(pod, 137)

    def preempt(self, index):
        """Send SIGTERM to a pod's process, as a node that is drained does."""
        for pod in self._pods.values():
            if pod.index == index and pod.process.poll() is None:
                os.killpg(pod.process.pid, signal.SIGTERM)

    def running(self):
        """Return the pods that run."""
        return [name for name, pod in self._pods.items() if pod.process.poll() is None]

    def close(self):
        """End what runs."""
        for pod in self._pods.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
            pod.process.wait(10)


def _action(policy, code):
    for rule in policy.get("rules", []):
        codes = rule.get("onExitCodes")
        if codes and code in codes["values"]:
            return rule["action"]
    return "Count"


def _has_ended(pod, code):
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ended = {"exitCode": code, "finishedAt": now, "reason": "Error" if code else "Completed"}
    pod.body["status"] = {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": [{"state": {"terminated": ended}}],
    }


def _problem(code, reason, message):
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return web.json_response({**body, "reason": reason, "message": message}, status=code)


@contextlib.contextmanager
def serve(network, folder, names=(), names_after=0.0):
    """Serve the API on a free port of this machine, from a thread.

    Args:
        network: Hosts for the pods.
        folder: Of their logs, and of the kubeconfig.
        names: The host names of the pods, in the order of the network's hosts.
        names_after: Seconds from the first pod's start until they can be looked up.
    """
    # Where Python finds its packages in a pod: an image has them.
    server = Server(
        network, folder, os.pathsep.join([os.environ["PYTHONPATH"], *filter(None, sys.path)])
    )
    lines = [f"{network.addresses[i]} {host}" for i, host in enumerate(names)]
    files = network.name_hosts(["127.0.0.1 localhost", *(() if names_after else lines)])

    def tell_names():
        for file in files:
            file.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))

    if names_after:
        server.on_start = lambda: threading.Timer(names_after, tell_names).start()
    for host in names:
        server._set_slot(host)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found = {}

    async def begin():
        runner = web.AppRunner(server.routes())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found["port"] = site._server.sockets[0].getsockname()[1]
        found["runner"] = runner
        ready.set()

    def run():
        asyncio.set_event_loop(loop)
        loop.create_task(begin())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    cluster = {"server": f"http://127.0.0.1:{found['port']}"}
    context = {"cluster": "c", "user": "u", "namespace": "default"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "contexts": [{"name": "c", "context": context}],
        "users": [{"name": "u", "user": {}}],
    }
    pathlib.Path(server.config).write_text(json.dumps(config))
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(found["runner"].cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        server.close()
        for file in files:
            file.unlink()
            file.parent.rmdir()

"""Between the launcher and the actors of Ray: a socket for the pipes, a thread for each task.

    with Bridge(ray, job, resources, seconds) as bridge:
        local.run(bridge.plan(), log_dir, renew=bridge.plan)

To the launcher's loop a task is its relay, as over ssh; in the place of ssh stands ray_pipe.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from tfdp.error import Error
from tfdp.launch import plan
from tfdp.launch.platforms import ray_pipe, relay
from tfdp.launch.platforms.job import Job
from tfdp.launch.platforms.ray_actor import Pipe
from tfdp.version import VERSION

_PIPE = (sys.executable, "-m", "tfdp.launch.platforms.ray_pipe")
_EXCHANGE_SECONDS = 0.2
# An actor that does not answer for so long is lost.
_SILENT_SECONDS = 10.0
# How long an actor may take to come: Ray starts a process of Python for it.
_BEGIN_SECONDS = 120.0
_READ_BYTES = 1 << 16


@dataclasses.dataclass
class _Place:
    """A task's actor, and what it has told of its node."""

    actor: Any
    facts: dict[str, Any]


class Bridge:
    """The actors of one run.

    Args:
        ray: The module.
        job: The run.
        resources: What each task asks for.
        seconds: How long Ray may take to place them all.

    Raises:
        Error: They were not placed in time, or a node cannot run its task.
    """

    def __init__(
        self, ray: Any, job: Job, resources: Sequence[dict[str, float]], seconds: float
    ) -> None:
        self._ray, self._job, self._resources = ray, job, resources
        self._places: list[_Place] = []
        self._folder = tempfile.TemporaryDirectory(prefix="tfdp-ray-")
        self._path = os.path.join(self._folder.name, "pipes")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(len(resources))
        self._group = ray.util.placement_group(list(resources), strategy="SPREAD")
        try:
            if not self._group.wait(seconds):
                raise Error(
                    f"Ray has not placed {job.shape} within {seconds:g} s: other runs hold what it "
                    "needs. Wait for them (ray status), or ask for less."
                )
            for number in range(len(resources)):
                self._places.append(self._placed(number))
            self._check_nodes()
        except BaseException:
            self.__exit__()
            raise
        threading.Thread(target=self._accept, name="tfdp-ray", daemon=True).start()

    def __enter__(self) -> "Bridge":
        return self

    def __exit__(self, *error: Any) -> None:
        self._listener.close()
        for place in self._places:
            with contextlib.suppress(Exception):  # it may be gone with its node
                self._ray.kill(place.actor)
        with contextlib.suppress(Exception):
            self._ray.util.remove_placement_group(self._group)
        self._folder.cleanup()

    def plan(self, left_out: Sequence[plan.TaskProcess] = ()) -> list[plan.TaskProcess]:
        """Return the processes that stand for the tasks, on ports that are free now.

        Args:
            left_out: Those of workers that are started no more.
        """
        gone = {int(process.host.partition("#")[2]) for process in left_out}
        kept = [number for number in range(len(self._places)) if number not in gone]
        for number in kept:
            self._renew(number)
        shape = self._job.shape.without(len(gone))
        facts = [self._places[number].facts for number in kept]
        processes = self._job.plan(
            shape.cluster([f"{one['address']}:{one['free_ports'][0]}" for one in facts])
        )
        made = []
        for number, one, process in zip(kept, facts, processes, strict=True):
            # Several actors may be on one node: the number tells them apart.
            host = f"{one['host']}#{number}"
            there = dataclasses.replace(process, directory=pathlib.Path(one["directory"]))
            pipe = (*_PIPE, self._path, str(number))
            made.append(relay.stand_in(pipe, host, there, self._job.secrets))
        return made

    # -- actors ---------------------------------------------------------------------------------

    def _placed(self, number: int) -> _Place:
        """Return an actor for a task, which has told of its node."""
        task, asked = self._job.shape.tasks[number], self._resources[number]
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=number
        )
        actor = (
            self._ray.remote(Pipe)
            .options(
                num_cpus=asked["CPU"],
                num_gpus=asked.get("GPU", 0),
                scheduling_strategy=strategy,
                max_restarts=0,
            )
            .remote()
        )
        try:
            look = actor.look.remote(self._question())
            return _Place(actor, self._ray.get(look, timeout=_BEGIN_SECONDS))
        except Exception as error:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
            # Ray's own errors are of many classes, and their text has many lines.
            first = str(error).strip().splitlines()[-1][:200]
            raise Error(f"{task} cannot begin on its node of Ray: {first}") from None

    def _question(self) -> dict[str, Any]:
        script = "" if self._job.script[0] == "-m" else self._job.script[0]
        return {
            "directory": self._job.directory,
            "make_directory": False,
            "script": script,
            "ports": [],
            "free_ports": 1,
            "mark": "",
            "wait_seconds": 0,
        }

    def _renew(self, number: int) -> None:
        """Take a port that is free now, on another node where its own is gone."""
        place = self._places[number]
        try:
            look = place.actor.look.remote(self._question())
            place.facts = self._ray.get(look, timeout=_SILENT_SECONDS)
        except Exception:  # whatever has become of it
            with contextlib.suppress(Exception):
                self._ray.kill(place.actor)
            self._places[number] = self._placed(number)

    def _check_nodes(self) -> None:
        """Refuse nodes with other versions, or without the script."""
        first = self._places[0].facts
        for task, place in zip(self._job.shape.tasks, self._places, strict=True):
            facts, where = place.facts, f"{task} on {place.facts['host']}"
            for name in ("tfdp", "tensorflow", "keras"):
                wanted = VERSION if name == "tfdp" else first[name]
                if facts[name] != wanted:
                    raise Error(
                        f"{where} has {name} {facts[name] or 'not at all'}, and others have "
                        f"{wanted}. Install the same on every node."
                    )
            if self._job.script[0] != "-m" and not facts["script_digest"]:
                raise Error(
                    f"{where} has no {self._job.script[0]} in {facts['directory']}. Use a folder "
                    "that all nodes share, or ray job submit --working-dir=., which sends it."
                )

    # -- pipes ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:  # closed: the run is over
                return
            threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        """Pass bytes on between a pipe of the launcher and an agent."""
        with channel:
            hello = channel.recv(ray_pipe.NUMBER.size, socket.MSG_WAITALL)
            (number,) = ray_pipe.NUMBER.unpack(hello)
            actor = self._places[number].actor
            why = ""
            with contextlib.suppress(OSError):  # the pipe is gone: so is its task
                try:
                    self._pass_on(channel, actor)
                except self._ray.exceptions.RayError as error:
                    why = f"{type(error).__name__} of Ray\n"
                channel.setblocking(True)
                _send(channel, ray_pipe.ENDED, why.encode())
            with contextlib.suppress(Exception):
                self._ray.get(actor.close.remote(), timeout=_SILENT_SECONDS)

    def _pass_on(self, channel: socket.socket, actor: Any) -> None:
        self._ray.get(actor.open.remote(), timeout=_SILENT_SECONDS)
        while True:
            channel.setblocking(False)
            try:
                given = channel.recv(_READ_BYTES)
                if not given:
                    return
            except BlockingIOError:
                given = b""
            answer = actor.exchange.remote(given, _EXCHANGE_SECONDS)
            data = self._ray.get(answer, timeout=_SILENT_SECONDS)
            if data is None:
                return
            channel.setblocking(True)
            _send(channel, ray_pipe.OUTPUT, data)


def _send(channel: socket.socket, kind: bytes, data: bytes) -> None:
    channel.sendall(ray_pipe.HEAD.pack(kind, len(data)) + data)

"""Traces of some steps, of each worker for TensorBoard and xprof, and one timeline of all.

    tracing.begin(os.environ)               # in a task that was started with --profile
    tracer = Tracer(profile, names, me)
    tracer.start()
    with tracer.step(10): ...
    tracer.stop()

FOLDER/trace/worker-0/plugins/profile/... is what TensorBoard's profiler and xprof open. Steps have
markers of tfdp's own: without them xprof says "No step marker observed" (xprof#571,
tensorflow#66410). FOLDER/trace/timeline.json is for Perfetto; the last worker to end writes it.
"""

import contextlib
import glob
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp import plain
from tfdp.bench import measure, timeline
from tfdp.bench.profile import VARIABLE, Profile
from tfdp.compat import traces
from tfdp.fit import add_to_next_fit

_log = logging.getLogger("tfdp")

FOLDER, TIMELINE, LANES = "trace", "timeline.json", "lanes.json"
_has_begun = False


def begin(environ: Mapping[str, str]) -> None:
    """Trace steps of the next fit if this process was started with --profile; called once or twice.

    Args:
        environ: The process's.
    """
    global _has_begun
    profile = Profile.from_variable(environ, VARIABLE)
    if profile is None or _has_begun:
        return
    _has_begun = True
    names, me = tasks(environ.get("TF_CONFIG", ""))
    add_to_next_fit(Steps(Tracer(profile, names, me)))


def tasks(tf_config: str) -> tuple[list[str], str]:
    """Return the names of the tasks that train in sync, and this one's; ([""], "") without."""
    if not tf_config:
        return [""], ""
    found = json.loads(tf_config)
    task, cluster = found["task"], found["cluster"]
    kinds = [kind for kind in ("chief", "worker") if kind in cluster]
    names = [f"{kind}:{i}" for kind in kinds for i in range(len(cluster[kind]))]
    return names, f"{task['type']}:{task['index']}"


class Tracer:
    """Traces one process.

    Args:
        profile: The steps, and the folder.
        names: Of all tasks that train, the first one's clock counts.
        me: The name of this one.
    """

    def __init__(self, profile: Profile, names: Sequence[str], me: str):
        self.profile, self._names, self._me = profile, list(names), me
        self._folder = pathlib.Path(profile.folder, FOLDER)
        self.is_running = False

    def start(self) -> None:
        """Begin to trace."""
        own = self._own(self._me)
        own.mkdir(parents=True, exist_ok=True)
        (own / LANES).unlink(missing_ok=True)
        tf.profiler.experimental.start(str(own))
        self.is_running = True

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Mark what runs in here as a step."""
        with tf.profiler.experimental.Trace(timeline.STEP, step_num=number, _r=1):
            yield

    def stop(self) -> None:
        """End the trace, and write this worker's lanes; with the last one's all are merged."""
        tf.profiler.experimental.stop()
        self.is_running = False
        own = self._own(self._me)
        files = glob.glob(str(own / "plugins" / "profile" / "*" / "*.xplane.pb"))
        newest = max(files, key=os.path.getmtime)
        lanes = timeline.lanes_of(timeline.Span(*event) for event in traces.events(newest))
        plain.replace(own / LANES, json.dumps(lanes))
        # On machines without a common folder each writes its own alone.
        others = {name: self._own(name) / LANES for name in self._names}
        if all(path.exists() for path in others.values()):
            whole = {name: json.loads(path.read_text()) for name, path in others.items()}
            plain.replace(self._folder / TIMELINE, timeline.merged(whole))
        _log.info(
            "Traced: %s. tensorboard --logdir=%s (with xprof installed); ui.perfetto.dev opens %s.",
            own, self._folder, self._folder / TIMELINE,
        )  # fmt: skip

    def _own(self, name: str) -> pathlib.Path:
        return self._folder / (name.replace(":", "-") or "process")


class Steps(keras.callbacks.Callback):
    """Traces the steps of a fit that a profile names.

    Args:
        tracer: What traces.
    """

    def __init__(self, tracer: Tracer):
        super().__init__()
        self._tracer = tracer
        self._earlier, self._ended, self._is_done = 0, 0, False
        self._marker: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Count the steps of earlier epochs."""
        self._earlier, self._ended = self._earlier + self._ended, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Open the trace, and the marker of a step."""
        number, profile = self._earlier + batch + 1, self._tracer.profile
        if not self._is_done and not self._tracer.is_running and number >= profile.first:
            self._tracer.start()
        if self._tracer.is_running:
            self._marker = self._tracer.step(number)
            self._marker.__enter__()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Close the marker, and the trace behind the last step."""
        self._ended = batch + 1
        if self._marker is not None:
            self._marker.__exit__(None, None, None)
            self._marker = None
        if self._tracer.is_running and self._earlier + self._ended >= self._tracer.profile.last:
            self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the trace of a fit that has ended before."""
        if self._tracer.is_running:
            self._stop()
        elif not self._is_done:
            _log.warning(
                "--profile: nothing was traced, the training had %d steps and step %d was to be "
                "the first.",
                self._earlier + self._ended,
                self._tracer.profile.first,
            )

    def _stop(self) -> None:
        self._is_done = True
        self._tracer.stop()


def of_bench(bench: measure.Bench, environ: Mapping[str, str]) -> None:
    """Trace steps of the real loop after a bench, where --profile asks for them; on all tasks.

    Args:
        bench: What has measured the fit.
        environ: The process's.
    """
    profile = Profile.from_variable(environ, VARIABLE)
    if profile is None:
        return
    tracer = Tracer(profile, *tasks(environ.get("TF_CONFIG", "")))
    runs, limit = bench.runs, bench.limit
    with bench.opened(runs):
        runs.real(limit)
        bench.rehearsal.of_all("the trace")
        tracer.start()
        for number in range(profile.first, profile.last + 1, limit):
            with tracer.step(number):
                runs.real(limit)
        tracer.stop()
    bench.rehearsal.of_all("the trace")

"""What happens when a fit is measured: the five runs, the report, the files, the end of the run.

    session.begin(os.environ)       # in a task that was started with --bench
    session.Session(Settings(folder="runs/a")).observe(rehearsal)

The chief prints and writes: bench.json, bandwidth.svg and .png where matplotlib is installed, and
the numbers for TensorBoard, below the same folder.
"""

import atexit
import dataclasses
import logging
import os
import pathlib
import sys
from collections.abc import Mapping

from tfdp.bench import apply, figure, measure, record, report, tracing, verdict
from tfdp.bench.settings import ENDS, VARIABLE, Settings
from tfdp.error import Error
from tfdp.fit import Rehearsal, observe_next_fit

_log = logging.getLogger("tfdp")

_has_begun = False


def begin(environ: Mapping[str, str]) -> None:
    """Let the next fit be measured if this process was started with --bench; called once or twice.

    Args:
        environ: The process's.
    """
    global _has_begun
    settings = Settings.from_variable(environ, VARIABLE)
    if settings is not None and not _has_begun:
        _has_begun = True
        session = Session(settings)
        observe_next_fit(session.observe)
        atexit.register(session.tell_if_nothing_was_measured)


class Session:
    """The bench of one fit.

    Args:
        settings: What is asked for.

    Attributes:
        record: What was measured; None before.
        has_begun: Whether a fit has come.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.record: record.Record | None = None
        self.has_begun = False

    def observe(self, rehearsal: Rehearsal) -> None:
        """Measure a fit that is about to begin; in a cluster every task does.

        Raises:
            Error: For data that cannot be read a second time.
            SystemExit: With 0, when the run is to end with the report.
        """
        self.has_begun = True
        goes_on = self.settings.then != ENDS
        _log.info("The bench measures this training; it takes half a minute or more.")
        with rehearsal.running(puts_back=goes_on) as runs:
            effort = measure.Effort(self.settings.rounds, self.settings.seconds)
            bench = measure.Bench(rehearsal, runs, effort)
            found = _judged(bench, self.settings.apply)
            if not goes_on:  # else the fit itself is traced
                tracing.of_bench(bench, os.environ)
        self.record = found
        if rehearsal.is_chief:
            self._write(found)
        rehearsal.of_all("the end of the bench")
        if not goes_on:
            sys.exit(0)

    def tell_if_nothing_was_measured(self) -> None:
        """Say, at the end of a run, that no fit has asked for its measures."""
        if not self.has_begun:
            _log.warning(
                "--bench has measured nothing: no model that was made under a strategy's scope() "
                "has called fit. Write: with tfdp.strategy().scope(): model = ...; model.compile()"
            )

    def _write(self, found: record.Record) -> None:
        print(report.text(found), end="", flush=True)
        if not self.settings.folder:
            return
        folder = pathlib.Path(self.settings.folder)
        found.write(folder / record.FILE)
        written = [str(folder / record.FILE)]
        try:
            written += [str(path) for path in figure.write(found, folder)]
        except Error as error:
            _log.info("%s", error)
        scalars(found, folder / "tensorboard" / "bench")
        print(f"\n  {', '.join(written)}", flush=True)


def _judged(bench: measure.Bench, applies: bool) -> record.Record:
    """Measure, judge, and try a remedy if that is asked for; on every task alike."""
    found, times = bench.measure()
    # Each task has its own clock: what is to be tried is the chief's choice.
    times = _same(bench, times)
    judgement = verdict.judge(times)
    proposals = verdict.remedies(judgement, times, bench.tried(judgement.verdict))
    found = dataclasses.replace(
        found,
        verdict=judgement.verdict,
        verdict_text=judgement.text,
        shares=judgement.shares,
        notes=judgement.notes,
        remedies=tuple(
            record.Remedy(one.name, one.text, one.gain, one.seconds_per_step) for one in proposals
        ),
    )
    if applies:
        found = dataclasses.replace(found, trial=apply.tried(bench, proposals))
    return found


def _same(bench: measure.Bench, times: verdict.Times) -> verdict.Times:
    first = bench.rehearsal.of_all("the bench", dataclasses.asdict(times))[0]
    lists = {name: tuple(v) for name, v in first.items() if isinstance(v, list)}
    return verdict.Times(**{**first, **lists})


def scalars(found: record.Record, folder: pathlib.Path) -> None:
    """Write the numbers of a bench for TensorBoard."""
    import tensorflow as tf

    worst_input = max(w.input_seconds.median_seconds for w in found.workers)
    alone = max(w.alone_seconds.median_seconds for w in found.workers)
    values = {
        "examples_per_second": found.examples_per_second,
        "input_examples_per_second": found.global_batch_examples / worst_input,
        "training_examples_per_second": found.global_batch_examples / alone,
        "step_seconds": found.real_seconds.median_seconds,
        "data_wait": found.data_wait,
        "gflops_per_second": found.compute.flops_per_second / 1e9,
        **{f"share_of_{name}": share for name, share in found.shares.items()},
    }
    if found.exchange_seconds is not None:
        values["exchange_seconds"] = found.exchange_seconds.median_seconds
    if found.compute.mfu:
        values["mfu"] = found.compute.mfu
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for name, value in values.items():
            tf.summary.scalar(f"bench/{name}", value, step=0)
        tf.summary.text("bench/report", "```\n" + report.text(found) + "```", step=0)
    writer.close()


def folder_of(path: str) -> str:
    """Return a folder as an absolute path; "" stays: nothing is written."""
    return os.path.abspath(path) if path else ""

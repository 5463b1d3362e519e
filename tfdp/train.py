"""Train one config, top to bottom: cluster -> strategy -> input -> fit -> evaluate -> export.

python -m tfdp.train --config=configs/digits.py         (or `tfdp train`, which can launch)
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import shutil
import statistics
import sys
import time
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from tfdp import batching, run
from tfdp import cluster as cluster_lib
from tfdp import config as config_lib
from tfdp.error import Error
from tfdp.tuning import settings as trial_settings

_log = logging.getLogger("tfdp")

# Where a run keeps what its evaluator evaluates, and what it goes on from when it is killed.
CHECKPOINTS, BACKUP = "checkpoints", "backup"
# What a run was started with, for `tfdp train --resume`.
COMMAND = "command.json"
# Says that a run has come to its end.
COMPLETE = "complete"
# Within long epochs: what a kill may cost at most.
_SAVE_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run reached.

    Attributes:
        history: fit's history: a list of one value per epoch for each metric; of the evaluator,
            one per checkpoint.
        test: evaluate's results on the test split, by metric; of the evaluator, those of the last
            checkpoint.
        examples_per_second: Median throughput of the epochs after the first, over all replicas;
            NaN where nothing was trained.
        model: The trained model, as .keras; None where this task is not the chief.
        exported: The SavedModel's version folder; None where this task is not the chief.
    """

    history: dict[str, list[float]]
    test: dict[str, float]
    examples_per_second: float
    model: pathlib.Path | None
    exported: pathlib.Path | None


def train(config: config_lib.Config, command: dict[str, Any] | None = None) -> Result:
    """Train, evaluate and export; in a cluster, every task calls it.

    A run whose folder holds a checkpoint goes on from there. A trial of `tfdp tune-batch` measures
    itself, and trains nothing that is kept.

    With an evaluator the training leaves a checkpoint of each epoch for it, instead of validating
    there, and the evaluator writes below the run's tensorboard/evaluator, and nothing else.

    Args:
        config: The config.
        command: What `command` returned: the run's folder keeps it.

    Raises:
        Error: For a setting that cannot be, with what is allowed.
    """
    config_lib.validate(config)
    found = cluster_lib.from_environment(os.environ)
    evaluates = found is not None and found.is_evaluator
    has_evaluator = cluster_lib.evaluated_run(os.environ) is not None
    chief = not evaluates and (found is None or found.is_chief)
    _check_cluster(config, found, has_evaluator)

    # Only here, when the settings are known to be good: TensorFlow takes seconds to import.
    run.import_tensorflow()
    run.show_log(chief)
    # What TensorFlow and TFDS tell at this level says nothing of this run.
    absl_logging.set_verbosity(absl_logging.WARNING)
    import keras
    import tensorflow as tf

    from tfdp import fit, learning, models, strategies
    from tfdp.data import inputs as inputs_lib
    from tfdp.serving import export

    if config.strategy == "mirrored" and found is None and not _gpus():
        strategies.use_cpu_replicas(config.cpu_replicas)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.training.precision)
    strategy = strategies.strategy(
        config.strategy, _communication(config.communication), **_servers(config.servers, found)
    )

    on_servers = found is not None and found.cluster.is_parameter_server
    # On parameter servers each batch is one worker's; an evaluator works alone.
    in_sync = found is not None and not on_servers and not evaluates
    workers = found.cluster.num_workers_in_sync if found is not None and in_sync else 1
    replicas = strategy.num_replicas_in_sync
    batch = batching.Batch(config.data.global_batch_size, workers, replicas // workers)
    data = config.data
    if evaluates:
        data = dataclasses.replace(data, ledger="")  # of what is trained on: the chief's file
    apart = 0
    if found is not None and on_servers and not evaluates:
        apart = len(found.cluster.worker) if config.servers.reading != "coordinator" else 0
    inputs = inputs_lib.open_inputs(data, config.seed, config.training.epochs, workers, apart)
    # Again: preparing a dataset draws random numbers, and a first run is to be as all that follow.
    keras.utils.set_random_seed(config.seed)
    run_dir = pathlib.Path(config.run_dir or config_lib.new_run_dir(config))
    if chief:
        config_lib.make_run_dir(run_dir)
        if command is not None:
            started = {**command, "cluster": _cluster(found)}
            (run_dir / COMMAND).write_text(json.dumps(started, indent=1) + "\n")
        print(batch)
        print(_records(config.data, inputs.records), flush=True)
        for line in inputs.plan_lines:
            _log.info(line)
        if has_evaluator:
            print(
                f"A checkpoint of each epoch goes to {run_dir / CHECKPOINTS}, for the evaluator, "
                "and stays there.",
                flush=True,
            )
    elif evaluates:
        print(f"Waits for checkpoints in {run_dir / CHECKPOINTS}.", flush=True)

    with strategy.scope():
        if not inputs.classes:
            model = models.build_own(config.model.name)
        else:
            model = models.build(
                config.model.name,
                inputs.input_shape,
                inputs.classes,
                pixel_max=inputs.pixel_max,
                dropout=config.model.dropout,
                width=config.model.width,
                synchronized=config.model.synchronized,
            )
        if not model.compiled:
            learned = learning.make(config.training, data.global_batch_size, inputs.steps)
            if learned.line and (chief or evaluates):
                print(learned.line, flush=True)
            model.compile(
                optimizer=learned.optimizer,
                loss=learned.loss,
                metrics=learned.metrics,
                jit_compile=config.training.jit_compile,
                steps_per_execution=config.training.steps_per_execution,
            )
    if (tried := trial_settings.of(os.environ)) is not None:
        from tfdp.tuning import trial

        counts = {"records": inputs.records[0], "steps_per_epoch": inputs.steps}
        epochs = config.training.epochs
        trial.run(tried, model, inputs.training, inputs.evaluation, epochs=epochs, **counts)
        return Result({}, {}, math.nan, None, None)
    # Before hours of training, not after them.
    export.check_second_signature(model, config.export.second_signature)
    clock = _clock(inputs.records[0], config.data.global_batch_size)
    callbacks = [
        clock,
        _tensorboard(run_dir / "tensorboard"),
        keras.callbacks.CSVLogger(str(run_dir / "history.csv")),
    ]
    if not evaluates and config.data.service == "off":
        # It goes when the model is written: a kill before that costs no training.
        backup = fit.BackupAndRestore(
            run_dir / BACKUP, save_seconds=_SAVE_SECONDS, delete_checkpoint=False
        )
        callbacks.append(backup)
    if has_evaluator:
        path = run_dir / CHECKPOINTS / "{epoch:04d}.weights.h5"
        callbacks.append(keras.callbacks.ModelCheckpoint(str(path), save_weights_only=True))
    run.begin_measuring()
    try:
        history = model.fit(
            inputs.training,
            epochs=config.training.epochs,
            steps_per_epoch=inputs.steps,
            validation_data=inputs.evaluation if evaluates or not has_evaluator else None,
            callbacks=callbacks,
        )
        if evaluates:
            last = {name: values[-1] for name, values in history.history.items()}
            return Result(history.history, last, math.nan, None, None)
        test = model.evaluate(inputs.evaluation, return_dict=True, verbose=0)
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        reason = inputs.explained(error)
        if reason is None:
            raise
        raise reason from error

    saved = exported = None
    if chief:
        saved = run_dir / "model.keras"
        model.save(saved)
        facts: dict[str, Any] = {"config": dataclasses.asdict(config), "labels": inputs.label_names}
        (run_dir / export.RUN).write_text(json.dumps(facts, indent=1) + "\n")
        exported = export.export(
            model,
            run_dir / "export" / config.name,
            labels=inputs.label_names,
            second_signature=config.export.second_signature,
            config=facts["config"],
        )
        (run_dir / COMPLETE).write_text(json.dumps(test) + "\n")
        shutil.rmtree(run_dir / BACKUP, ignore_errors=True)
        results = "".join(
            f"{f'Test {name}:':14} {value:.4f}\n" for name, value in test.items() if name != "loss"
        )
        print(
            f"{results}"
            f"Throughput:    {clock.rate:,.0f} examples/s\n"
            f"Model:         {saved}\n"
            f"SavedModel:    {exported}\n"
            f"TensorBoard:   {run_dir / 'tensorboard'}",
            flush=True,
        )
    return Result(history.history, test, clock.rate, saved, exported)


def command(flag: Any) -> dict[str, Any]:
    """Return what the flag --config was given: the file, and the settings that were changed."""
    file, colon, variant = config_flags.get_config_filename(flag).partition(":")
    settings = dict(config_flags.get_override_values(flag))
    return {"config": os.path.abspath(file) + colon + variant, "settings": settings}


def _cluster(found: cluster_lib.Place | None) -> dict[str, Any]:
    """Return the flags of the tasks that train; none where this process trains alone."""
    if found is None:
        return {}
    cluster = found.cluster
    return {
        "workers": len(cluster.worker),
        "chief": cluster.chief_task().type == "chief",
        "ps": len(cluster.ps),
    }


def _servers(settings: config_lib.Servers, found: cluster_lib.Place | None) -> dict[str, Any]:
    """Return what tfdp.strategy takes for parameter servers; nothing without them."""
    if found is None or not found.cluster.is_parameter_server:
        return {}
    return {
        "min_partition_bytes": settings.min_partition_bytes or None,
        "max_staleness": None if settings.max_staleness < 0 else settings.max_staleness,
        "lazy_rows": settings.lazy_rows,
        "reading": settings.reading,
    }


def _check_cluster(
    config: config_lib.Config,
    found: cluster_lib.Place | None,
    has_evaluator: bool,
) -> None:
    if has_evaluator and not config.run_dir:
        raise config_lib.ConfigError(
            "config.run_dir is empty: an evaluator waits for the checkpoints of other tasks, and "
            "has to know their folder. Give all of them the same --config.run_dir=DIR."
        )
    if found is None:
        flags = {"multi_worker": "--workers=2", "parameter_server": "--chief --workers=2 --ps=1"}
        if config.strategy in flags:
            raise config_lib.ConfigError(
                f"config.strategy={config.strategy!r} needs several processes: add "
                f"{flags[config.strategy]}, or set TF_CONFIG."
            )
        return
    cluster, task = found
    # The evaluator is told the strategy of those who train, and takes what its own devices make.
    if config.strategy != "auto" and task.type != "evaluator":
        cluster_lib.check_strategy(cluster, config.strategy, task)


def _gpus() -> list[Any]:
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


def _communication(settings: config_lib.Communication) -> Any:
    from tfdp import fit

    return fit.Communication(
        implementation=settings.implementation,
        bytes_per_pack=settings.bytes_per_pack,
        compression=None if settings.compression == "none" else settings.compression,
        timeout_seconds=settings.timeout_seconds or None,
        sync_every=settings.sync_every,
        sync_after=settings.sync_after,
        outer=_outer(settings),
    )


def _outer(settings: config_lib.Communication) -> Any:
    """Return what moves the weights where replicas meet."""
    import keras

    if settings.outer == "none":
        return None
    return keras.optimizers.SGD(
        settings.outer_learning_rate,
        momentum=settings.outer_momentum,
        nesterov=settings.outer == "nesterov",
    )


def _records(data: config_lib.Data, counts: tuple[int | None, int | None]) -> str:
    name = data.function or (data.tfds_name if data.source == "tfds" else data.train_files)
    if None in counts:
        return f"{name}: nobody has counted its records."
    return f"{name}: {counts[0]:,} records to train on, {counts[1]:,} to test."


def _tensorboard(folder: pathlib.Path) -> Any:
    """Return a callback that writes the epochs' numbers for TensorBoard.

    Keras's own works at each step for scalars that it then leaves out (update_freq="epoch"): a
    millisecond, on the chief alone, for which all workers wait.
    """
    import keras

    class TensorBoard(keras.callbacks.TensorBoard):
        on_train_batch_begin = keras.callbacks.Callback.on_train_batch_begin
        on_train_batch_end = keras.callbacks.Callback.on_train_batch_end

    return TensorBoard(str(folder), write_graph=False)


def _clock(records: int | None, global_batch_size: int) -> Any:
    import keras

    class Clock(keras.callbacks.Callback):
        """Measures the throughput of each epoch, in examples/s over all replicas."""

        def __init__(self) -> None:
            super().__init__()
            self.rates: list[float] = []
            self._start = 0.0

        @property
        def rate(self) -> float:
            # The first epoch traces and compiles.
            return statistics.median(self.rates[1:] or self.rates or [math.nan])

        def state_dict(self) -> dict[str, Any]:
            return {"rates": self.rates}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.rates = state["rates"]

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._start = time.perf_counter()

        def on_test_begin(self, logs: Any = None) -> None:
            self._stop()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self._stop()

        def _stop(self) -> None:
            # Where nobody has counted the records, by the batches, as if all were full.
            trained = records or (self.params.get("steps") or 0) * global_batch_size
            if self._start and trained:
                self.rates.append(trained / (time.perf_counter() - self._start))
                self._start = 0.0

    return Clock()


def main(argv: list[str]) -> None:
    """Run what --config names."""
    del argv
    try:
        train(_FLAG.value, command(flags.FLAGS["config"]))
    except Error as error:  # its message says all: no traceback is needed
        sys.stderr.write(f"tfdp: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    _FLAG = config_flags.DEFINE_config_file("config")
    app.run(main)

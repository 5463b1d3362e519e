"""The cost of a synchronous training step, against a hand-written loop and other trainers.

    python scripts/benchmarks/sync_step.py                  # everything: about 15 minutes
    python scripts/benchmarks/sync_step.py --model=mlp --rounds=5

Starts 1 and 2 worker processes of one core each. Every pair is interleaved in one process: a
round runs each contestant for some steps, and what is shown is the median over the rounds, with
the ratio taken round by round. tf_keras and the extra gloo are installed when they are absent;
torch (DDP on gloo) is compared when it is there, in clusters that take turns with tfdp's. Exits 1
if a limit is missed.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__)
# Rows of a step for each worker.
ROWS = {"mlp": 32, "cnn": 32}
STEPS = 20
# What "auto" takes between workers of one machine, and between machines.
AUTO_ALONE, GLOO_ALONE = "tfdp fit, shared memory, alone", "tfdp fit, Gloo, alone"
RING_ALONE = "tfdp fit, ring, alone"
# Of what "auto" takes on one machine: against torch's DDP on Gloo, the trainer that a user would
# take otherwise; against tf_keras; and against TensorFlow's RING under tfdp.
LIMITS = {
    "mlp": {"torch DDP on Gloo": 1.0, "tf_keras fit": 0.45, RING_ALONE: 0.45},
    "cnn": {"torch DDP on Gloo": 1.05, RING_ALONE: 0.8},
}
# Of Gloo, which "auto" takes between machines.
GLOO_LIMITS = {"mlp": {"torch DDP on Gloo": 1.0}, "cnn": {"torch DDP on Gloo": 1.05}}
GRADIENTS_MB = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["mlp", "cnn"], action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, action="append")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = options.model or ["mlp", "cnn"]
    if options.task:
        _pin()
        TASKS[options.task](models[0], options.rounds, options.output)
        return
    for module, package in {"tf_keras": "tf_keras<2.22", "xoscar": "xoscar<0.13"}.items():
        if importlib.util.find_spec(module) is None:
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)
    failures: list[str] = []
    print(f"{os.cpu_count()} cores, one for each worker; medians of {options.rounds} rounds.")
    for workers in options.workers or [1, 2]:
        if workers > 1:
            _report_reduce(_run_reduce(workers, options.rounds), failures)
        for model in models:
            _report_fit(model, workers, _run_fit(model, workers, options.rounds), failures)
    if not options.workers or 1 in options.workers:
        for model in models:
            _report_single(model, _run("single", model, 0, options.rounds), failures)
    for failure in failures:
        print(f"MISSED: {failure}")
    sys.exit(bool(failures))


# -- the parent: starts workers, prints tables ------------------------------------------------


def _run(task: str, model: str, workers: int, rounds: int) -> dict[str, list[float]]:
    """Run a task in worker processes; return the chief's seconds per step by contestant."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "times.json"
        own = [f"--task={task}", f"--model={model}", f"--rounds={rounds}", f"--output={output}"]
        if task == "single":
            command = [sys.executable, str(HERE), *own]
        else:
            launch = [sys.executable, "-m", "tfdp", "launch", f"--workers={workers}"]
            command = [*launch, f"--log_dir={folder}/logs", "--", str(HERE), *own]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            sys.exit(done.stdout[-4000:] + done.stderr[-4000:])
        return json.loads(output.read_text())


def _run_reduce(workers: int, rounds: int) -> dict[str, list[float]]:
    """Time the all-reduces, TensorFlow's in clusters of their own.

    tfdp sets how collectives receive for a whole process, so TensorFlow as it comes cannot be timed
    beside it: clusters of both kinds take turns.
    """
    return _run_in_turns(["default", "reduce"], "mlp", workers, rounds)


def _run_fit(model: str, workers: int, rounds: int) -> dict[str, list[float]]:
    """Time fit, and beside it what has processes of its own: torch, and what "auto" takes.

    A model that trains alone finds other memory than one of five in a process.
    """
    if workers == 1:
        return _run("fit", model, workers, rounds)
    tasks = ["fit", "alone", "alone_gloo", "alone_ring"]
    if importlib.util.find_spec("torch") is not None:
        tasks.append("torch")
    return _run_in_turns(tasks, model, workers, rounds)


def _run_in_turns(tasks: list[str], model: str, workers: int, rounds: int) -> dict:
    times: dict[str, list[float]] = {}
    for _ in range(-(-rounds // 2)):
        for task in tasks:
            for name, values in _run(task, model, workers, 2).items():
                times[name] = times.get(name, []) + values
    return times


def _ms(times: list[float]) -> str:
    return f"{statistics.median(times) * 1e3:.1f} ms"


def _ratio(times: dict[str, list[float]], a: str, b: str) -> float:
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def _check(failures: list[str], what: str, value: float, limit: float) -> None:
    ok = value <= limit
    print(f"    {what}: {value:.3f} (<= {limit}{'' if ok else ', MISSED'})")
    if not ok:
        failures.append(f"{what}: {value:.3f}, wanted <= {limit}")


def _report_reduce(times: dict[str, list[float]], failures: list[str]) -> None:
    print(f"\nAll-reduce of {GRADIENTS_MB} MB of gradients, 2 workers")
    print("(less the time of a step without it; in brackets, processor time of one worker)")
    busy = {n.removesuffix(" busy"): t for n, t in times.items() if n.endswith(" busy")}
    alone = times["no all-reduce"]
    alone_default = times.pop("no all-reduce, default")
    sync = {
        name: [
            t - (0 if name.startswith("bare Gloo") else a)
            for t, a in zip(
                values, alone_default if name == "TensorFlow, default" else alone, strict=True
            )
        ]
        for name, values in times.items()
        if not name.endswith(" busy") and name != "no all-reduce"
    }
    for name, values in sync.items():
        print(f"  {name:34} {_ms(values):>10}  [{_ms(busy[name])}]")
    base, bare = "TensorFlow, default", "bare Gloo, float32"
    _check(failures, "shared memory / default",
           _ratio(sync, "shared memory float32", base), 0.45)  # fmt: skip
    # Its own part is Gloo's: bare, it takes 0.37 to 0.6 of the default from run to run.
    print(f"    Gloo / default: {_ratio(sync, 'Gloo float32', base):.3f}")
    _check(failures, "Gloo / bare Gloo", _ratio(sync, "Gloo float32", bare), 1.3)
    for name in ("RING float32", "RING float16", "Gloo float16", "Gloo bfloat16"):
        print(f"    {name} / default: {_ratio(sync, name, base):.3f}")
    ring = _ratio(sync, "bare collectives, float32", base)
    ring_half = _ratio(sync, "bare collectives, float16", base)
    print(f"    RING itself: bare collectives / default: {ring:.3f}, float16 {ring_half:.3f}")


def _report_fit(model: str, workers: int, times: dict[str, list[float]], failures: list) -> None:
    print(f"\n{model}, {workers} worker(s), {ROWS[model]} rows each")
    for name, values in times.items():
        rate = ROWS[model] * workers / statistics.median(values)
        print(f"  {name:32} {_ms(values):>10}   {rate:9,.0f} examples/s")
    if workers == 1:
        ratio = _ratio(times, "tfdp fit", "hand-written loop")
        print(f"    {model} x1 fit / hand-written loop: {ratio:.3f}")
    else:
        _check(failures, f"{model} x{workers} fit / hand-written loop",
               _ratio(times, "tfdp fit", "hand-written loop"), 1.05)  # fmt: skip
        for mine, limits in {AUTO_ALONE: LIMITS[model], GLOO_ALONE: GLOO_LIMITS[model]}.items():
            if workers > 2:  # they share the cores
                limits = {RING_ALONE: 1.0}
            for other, limit in limits.items():
                if other in times:
                    _check(failures, f"{model} x{workers} {mine} / {other}",
                           _ratio(times, mine, other), limit)  # fmt: skip


def _report_single(model: str, times: dict[str, list[float]], failures: list[str]) -> None:
    print(f"\n{model}, one process")
    for name, values in times.items():
        print(f"  {name:32} {_ms(values):>10}")
    _check(failures, f"{model} MirroredStrategy of 1 / fit without a strategy",
           _ratio(times, "fit, MirroredStrategy of 1", "fit, no strategy"), 1.03)  # fmt: skip


# -- in a worker --------------------------------------------------------------------------------


def _task_index() -> int:
    return json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)


def _pin() -> None:
    """Keep this process on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[_task_index() % len(cores)]})


def _strategy():
    import tensorflow as tf

    import tfdp

    ring = tf.distribute.experimental.CommunicationImplementation.RING
    tfdp.enable(tfdp.Communication(implementation="ring"))
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(implementation=ring)
    )


def _build(keras, model: str):
    layers = keras.layers
    if model == "mlp":  # 8.0 million parameters
        return keras.Sequential(
            [
                keras.Input((784,)),
                layers.Dense(2048, activation="relu"),
                layers.Dense(2048, activation="relu"),
                layers.Dense(1050, activation="relu"),
                layers.Dense(10),
            ]
        )
    return keras.Sequential(  # 1.0 million parameters
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(640, activation="relu"),
            layers.Dense(10),
        ]
    )


def _compiled(keras, model: str, **compile):
    built = _build(keras, model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(keras.optimizers.SGD(0.01), loss, **compile)
    return built


def _dataset(model: str, workers: int):
    import numpy as np
    import tensorflow as tf

    rows = ROWS[model] * workers
    random = np.random.default_rng(0)
    shape = (784,) if model == "mlp" else (28, 28, 1)
    x = random.normal(size=(rows * 4, *shape)).astype("float32")
    y = random.integers(0, 10, rows * 4)
    data = tf.data.Dataset.from_tensor_slices((x, y)).cache().repeat()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.batch(rows, drop_remainder=True).with_options(options)


def _fit_contestant(keras, model, data):
    """Return a function that runs STEPS steps and returns the seconds of one.

    The second epoch of a fit is timed: what fit does once is not a step.
    """

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    def run() -> float:
        clock = Clock()
        model.fit(data, epochs=2, steps_per_epoch=STEPS, verbose=0, callbacks=[clock])
        return clock.seconds / STEPS

    return run


def _hand_written(strategy, model_name: str, workers: int):
    """The floor: gradients, all-reduce and update, and nothing else."""
    import keras
    import tensorflow as tf

    with strategy.scope():
        model = _build(keras, model_name)
    data = strategy.experimental_distribute_dataset(_dataset(model_name, workers))
    rows = ROWS[model_name] * workers
    wire = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=1 << 22)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            loss = tf.reduce_sum(losses) / rows
        variables = [v.value for v in model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients, options=wire)
        for variable, gradient in zip(variables, gradients, strict=True):
            strategy.experimental_local_results(variable)[0].assign_sub(0.01 * gradient)
        return loss

    @tf.function
    def step(iterator):
        return strategy.run(replica_step, args=next(iterator))

    iterator = iter(data)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            loss = step(iterator)
        float(strategy.experimental_local_results(loss)[0])
        return (time.perf_counter() - start) / STEPS

    return run


def _interleave(contestants: dict, rounds: int, output: str, busy: bool = False) -> None:
    for run in contestants.values():
        run()  # traces
    times: dict[str, list[float]] = {name: [] for name in contestants}
    if busy:
        times |= {f"{name} busy": [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            before = time.process_time()
            times[name].append(run())
            if busy:
                times[f"{name} busy"].append((time.process_time() - before) / STEPS)
    if _task_index() == 0:
        pathlib.Path(output).write_text(json.dumps(times))


def _fit(model: str, rounds: int, output: str) -> None:
    import tensorflow as tf

    strategy = _strategy()
    import keras

    import tfdp

    workers = strategy.num_replicas_in_sync
    with strategy.scope():
        mine = _compiled(keras, model)
        packed = _compiled(keras, model)
    contestants = {
        "hand-written loop": _hand_written(strategy, model, workers),
        "tfdp fit": _fit_contestant(keras, mine, _dataset(model, workers)),
    }
    if workers > 1:
        half = _fit_contestant(keras, packed, _dataset(model, workers))

        def compressed() -> float:
            tfdp.enable(tfdp.Communication(implementation="ring", compression="float16"))
            seconds = half()
            tfdp.enable(tfdp.Communication(implementation="ring"))
            return seconds

        contestants["tfdp fit, float16 on the wire"] = compressed
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tf_keras

    with strategy.scope():
        legacy = _compiled(tf_keras, model)
    contestants["tf_keras fit"] = _fit_contestant(tf_keras, legacy, _dataset(model, workers))
    del tf
    _interleave(contestants, rounds, output)


def _alone(model: str, rounds: int, output: str, implementation: str = "auto") -> None:
    strategy = _strategy()
    import keras

    import tfdp

    tfdp.enable(tfdp.Communication(implementation=implementation))
    with strategy.scope():
        mine = _compiled(keras, model)
    run = _fit_contestant(keras, mine, _dataset(model, strategy.num_replicas_in_sync))
    names = {"auto": AUTO_ALONE, "gloo": GLOO_ALONE, "ring": RING_ALONE}
    _interleave({names[implementation]: run}, rounds, output)


def _alone_gloo(model: str, rounds: int, output: str) -> None:
    _alone(model, rounds, output, "gloo")


def _alone_ring(model: str, rounds: int, output: str) -> None:
    _alone(model, rounds, output, "ring")


def _default(model: str, rounds: int, output: str) -> None:
    import tensorflow  # noqa: F401  # tfdp tunes its collectives as it is imported

    from tfdp.compat import collectives

    collectives.enlarge_receive_chunks(4096)  # TensorFlow's own size
    _reduce(model, rounds, output, as_it_comes=True)


def _reduce(model: str, rounds: int, output: str, as_it_comes: bool = False) -> None:
    import tensorflow as tf

    strategy = _strategy()
    import keras

    from tfdp.fit.replicas import communication, transport

    with strategy.scope():
        variables = [v.value for v in _build(keras, model).trainable_variables]
    ring = communication.Communication(implementation="ring")

    def contestant(reduce, values=variables, wire=ring):
        @tf.function(autograph=False)
        def step(scale):
            def on_replica():
                gradients = [v * tf.cast(scale, v.dtype) for v in values]
                return tf.add_n(
                    [tf.cast(tf.reshape(g, (-1,))[0], tf.float32) for g in reduce(gradients)]
                )

            return strategy.run(on_replica)

        def run() -> float:
            transport.choose(strategy, wire, "the benchmark")
            start = time.perf_counter()
            for _ in range(STEPS):
                result = step(tf.constant(1.0))
            float(strategy.experimental_local_results(result)[0])
            return (time.perf_counter() - start) / STEPS

        return run

    def default(gradients):
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    def mine(implementation, compression=None):
        wire = dataclasses.replace(ring, implementation=implementation, compression=compression)
        return contestant(lambda gradients: communication.all_reduce(gradients, wire), wire=wire)

    def one_by_one(tensors):
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=1)
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors, options=options)

    def packs(dtype):  # tensors that need no packing: what is left is TensorFlow's collective
        size = (1 << 22) // dtype.size
        return [tf.Variable(tf.ones((size,), dtype)) for _ in range(8 * dtype.size // 4)]

    if as_it_comes:
        contestants = {
            "no all-reduce, default": contestant(lambda gradients: gradients),
            "TensorFlow, default": contestant(default),
        }
        _interleave(contestants, rounds, output, busy=True)
        return
    contestants = {
        "no all-reduce": contestant(lambda gradients: gradients),
        "RING float32": mine("ring"),
        "RING float16": mine("ring", "float16"),
        "shared memory float32": mine("shared_memory"),
        "shared memory float16": mine("shared_memory", "float16"),
        "shared memory bfloat16": mine("shared_memory", "bfloat16"),
        "Gloo float32": mine("gloo"),
        "Gloo float16": mine("gloo", "float16"),
        "Gloo bfloat16": mine("gloo", "bfloat16"),
        "bare Gloo, float32": _bare_gloo(strategy),
        "bare collectives, float32": contestant(one_by_one, packs(tf.float32)),
        "bare collectives, float16": contestant(one_by_one, packs(tf.float16)),
    }
    _interleave(contestants, rounds, output, busy=True)


def _bare_gloo(strategy):
    """The binding in this process, on one buffer and in place: nothing is copied for it."""
    import numpy as np

    from tfdp.compat import coordination
    from tfdp.fit.replicas import gloo, gloo_process

    class Store:
        """What the process beside a worker asks the worker for."""

        def send(self, _, what, key, text):
            self.key = f"bare/{key}"
            if what == "set":
                coordination.share_text(self.key, text)

        def receive(self):
            return ["value", coordination.shared_text(self.key, 30)]

    workers, me = strategy.num_replicas_in_sync, strategy.cluster_resolver.task_id
    bare = gloo_process.Collectives(gloo.binding(), Store())
    bare.connect(me, workers, "127.0.0.1", 30)
    numbers = np.ones(GRADIENTS_MB << 18, np.float32)
    bare.use(numbers.view(np.uint8))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            bare.sum(0, [["float32", 0, numbers.size]])
        return (time.perf_counter() - start) / STEPS

    return run


def _single(model: str, rounds: int, output: str) -> None:
    import keras
    import tensorflow as tf

    import tfdp

    tfdp.enable()
    strategy = tf.distribute.MirroredStrategy(["cpu:0"])
    with strategy.scope():
        mirrored = _compiled(keras, model)
    contestants = {
        "fit, no strategy": _fit_contestant(keras, _compiled(keras, model), _dataset(model, 1)),
        "fit, MirroredStrategy of 1": _fit_contestant(keras, mirrored, _dataset(model, 1)),
    }
    _interleave(contestants, rounds, output)


def _torch(model: str, rounds: int, output: str) -> None:
    import torch

    config = json.loads(os.environ["TF_CONFIG"])
    addresses = config["cluster"]["worker"]
    host, port = addresses[0].split(":")
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://{host}:{int(port) + 1}",
        rank=config["task"]["index"],
        world_size=len(addresses),
    )
    torch.set_num_threads(1)
    nn = torch.nn
    if model == "mlp":
        sizes = [784, 2048, 2048, 1050, 10]
        parts = []
        for a, b in itertools.pairwise(sizes):
            parts += [nn.Linear(a, b), nn.ReLU()]
        net, shape = nn.Sequential(*parts[:-1]), (784,)
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 49, 640), nn.ReLU(), nn.Linear(640, 10),
        )  # fmt: skip
        shape = (1, 28, 28)
    net = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x, y = torch.randn(ROWS[model], *shape), torch.randint(0, 10, (ROWS[model],))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        return (time.perf_counter() - start) / STEPS

    _interleave({"torch DDP on Gloo": run}, rounds, output)
    torch.distributed.barrier()
    os._exit(0)  # torch's threads abort a process that ends with them


TASKS = {
    "fit": _fit,
    "alone": _alone,
    "alone_gloo": _alone_gloo,
    "alone_ring": _alone_ring,
    "default": _default,
    "reduce": _reduce,
    "single": _single,
    "torch": _torch,
}

if __name__ == "__main__":
    main()

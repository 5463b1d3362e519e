"""A fit that the bench has measured trains as one that was not measured: bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp import callbacks, fit

L = keras.layers
ROWS, BATCH = 44, 8
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, 5)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("int32")
QUICK = {"rounds": 2, "seconds": 0.02}


class Seen(keras.callbacks.Callback):
    """What a callback is told, in order."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append((batch, dict(logs)))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append((epoch, dict(logs)))


class Noisy(keras.utils.PyDataset):
    """Draws NumPy's random numbers for each batch."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return X[part] + np.random.normal(size=X[part].shape).astype("float32"), Y[part]


class OwnStep(keras.Model):
    """A train_step of its own, with an optimizer that it builds at its first step."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)
        self.second = keras.optimizers.Adam(0.01)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.second.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def layered():
    return keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(8),
            L.BatchNormalization(),
            L.Activation("relu"),
            L.Dropout(0.3),
            L.Dense(2),
        ]
    )


def shuffled():
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(20).batch(BATCH)


DATA = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": BATCH},
    "shuffled_dataset": lambda: {"x": shuffled()},
    "cached_dataset": lambda: {"x": shuffled().cache().repeat(), "steps_per_epoch": 5},
    "pydataset": lambda: {"x": Noisy()},
    "pydataset_threads": lambda: {"x": Noisy(workers=2)},
    "unknown_length": lambda: {"x": shuffled().filter(lambda x, y: tf.size(y) > 1)},
}


def train(strategy, data, build=layered, bench=None):
    """Train two fits; return all that is to be equal."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    with strategy.scope():
        model = build()
        model.compile(
            "adam",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"] if build is layered else None,
        )
    seen, given = Seen(), DATA[data]()
    more = [bench] if bench else []
    first = model.fit(**given, epochs=2, verbose=0, callbacks=[*more, seen])
    second = model.fit(**given, epochs=1, verbose=0)
    found = {f"weight {v.path}": v.numpy() for v in model.variables}
    found |= {f"optimizer {v.path}": v.numpy() for v in model.optimizer.variables}
    drawn = (np.random.normal(), tf.random.uniform(()).numpy())
    return found, seen.calls, first.history, second.history, drawn


def assert_equal(one, other):
    assert one[0].keys() == other[0].keys()
    for name in one[0]:
        np.testing.assert_array_equal(one[0][name], other[0][name], err_msg=name)
    assert one[1:] == other[1:]


@pytest.fixture
def strategy(request, one_device, mirrored):
    return {"one_device": one_device, "mirrored": mirrored[2]}[request.param]


@pytest.mark.parametrize(
    ("strategy", "data"),
    [
        pytest.param("one_device", "shuffled_dataset", marks=pytest.mark.exhaustive),
        pytest.param("one_device", "arrays", marks=pytest.mark.exhaustive),
        pytest.param("one_device", "pydataset", marks=pytest.mark.exhaustive),
        pytest.param("mirrored", "shuffled_dataset", marks=pytest.mark.exhaustive),
        ("mirrored", "cached_dataset"),
        pytest.param("mirrored", "unknown_length", marks=pytest.mark.exhaustive),
    ],
    indirect=["strategy"],
)
def test_after_the_bench_all_is_as_before(strategy, data, tmp_path, capsys):
    tfdp.enable()
    bench = callbacks.Bench(tmp_path, apply=data == "shuffled_dataset", **QUICK)
    assert_equal(train(strategy, data, bench=bench), train(strategy, data))
    found = bench.record
    assert found.global_batch_examples == BATCH
    assert (tmp_path / "bench.json").is_file()
    assert (tmp_path / "bandwidth.svg").is_file()
    assert found.verdict_text in capsys.readouterr().out
    assert found.replicas == strategy.num_replicas_in_sync
    # 5 x 8, 8 x 2 multiplies and adds, with biases; 8 normalised, 8 activated.
    assert found.compute.forward_flops_per_example == 8 * 11 + 2 * 17 + 16 + 8


def test_threads_that_read_ahead_are_refused(one_device):
    tfdp.enable()
    with pytest.raises(tfdp.Error, match=r"Noisy reads ahead in threads \(workers=2\)"):
        train(one_device, "pydataset_threads", bench=callbacks.Bench(**QUICK))


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_an_optimizer_that_a_step_builds_begins_anew(strategy):
    tfdp.enable()
    bench = callbacks.Bench(**QUICK)
    assert_equal(
        train(strategy, "shuffled_dataset", OwnStep, bench),
        train(strategy, "shuffled_dataset", OwnStep),
    )


def test_data_that_can_be_read_only_once_is_refused(one_device):
    tfdp.enable()
    with one_device.scope():
        model = layered()
        model.compile("sgd", "mse")
    data = ((X[:8], Y[:8, None]) for _ in range(3))
    with pytest.raises(tfdp.Error, match=r"can be read only once. Give a tf.data.Dataset"):
        model.fit(data, verbose=0, callbacks=[callbacks.Bench(**QUICK)])


def test_a_bench_that_does_not_go_on_ends_the_process(one_device, tmp_path):
    tfdp.enable()
    with one_device.scope():
        model = layered()
        model.compile("sgd", "mse")
    bench = callbacks.Bench(tmp_path, goes_on=False, **QUICK)
    with pytest.raises(SystemExit) as end:
        model.fit(X, Y[:, None], batch_size=BATCH, verbose=0, callbacks=[bench])
    assert end.value.code == 0


def test_throughput_has_the_names_of_composer(one_device):
    tfdp.enable()
    with one_device.scope():
        model = layered()
        model.compile("sgd", "mse")
    history = model.fit(
        X, Y[:, None], batch_size=BATCH, epochs=3, verbose=0, validation_data=(X, Y[:, None]),
        callbacks=[callbacks.Throughput()],
    ).history  # fmt: skip
    rates = history["throughput/samples_per_sec"]
    assert len(rates) == 3
    assert min(rates) > 0
    assert history["throughput/device/samples_per_sec"] == rates
    # 44 rows in 6 steps; the first execution of the first epoch has traced and is left out.
    steps = history["throughput/batches_per_sec"]
    for rate, step in list(zip(rates, steps, strict=True))[1:]:
        assert rate / step == pytest.approx(ROWS / 6)
    assert rates[0] / steps[0] == pytest.approx((ROWS - BATCH) / 5)
    assert all(0 <= wait <= 1 for wait in history["data_wait"])
    flops = history["throughput/flops_per_sec"]
    assert flops == pytest.approx([3 * 146 * rate for rate in rates])
    assert history["time/total"] == pytest.approx(
        np.add(history["time/train"], history["time/val"])
    )


def test_the_pace_is_shown_and_the_history_is_kerass(mirrored, capsys, tmp_path):
    tfdp.enable()
    with mirrored[2].scope():
        model = layered()
        model.compile("sgd", "mse")
    board = keras.callbacks.TensorBoard(tmp_path)
    history = model.fit(X, Y[:, None], batch_size=BATCH, epochs=2, verbose=2, callbacks=[board])
    assert sorted(history.history) == ["loss"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(lines) == 2
    assert all("data_wait: " in line and "examples/s: " in line for line in lines)
    board._train_writer.flush()
    tags = set()
    for path in (tmp_path / "train").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"epoch_loss", "epoch_data_wait", "epoch_examples_per_second"} <= tags


def test_waits_for_slow_data_are_seen(mirrored, one_device, caplog):
    tfdp.enable()

    def slow(x, y):
        def wait(x):
            import time

            time.sleep(0.1)  # far longer than a step, also on a busy machine
            return x

        waited = tf.numpy_function(wait, [x], tf.float32)
        waited.set_shape(x.shape)
        return waited, y

    data = tf.data.Dataset.from_tensor_slices((X, Y[:, None])).batch(BATCH).map(slow)
    for strategy in (one_device, mirrored[2]):
        for given in (data, data.filter(lambda x, y: True)):  # of known and of unknown length
            caplog.clear()
            with strategy.scope():
                model = layered()
                model.compile("sgd", "mse")
            seen = Paces()
            model.fit(given.repeat(2), epochs=2, verbose=0, callbacks=[seen])
            assert [pace.steps for pace in seen.paces] == [11, 12]
            assert [pace.examples for pace in seen.paces] == [2 * ROWS - BATCH, 2 * ROWS]
            assert all(pace.data_wait > 0.2 for pace in seen.paces)
            hints = [r for r in caplog.records if "highly input-bound" in r.getMessage()]
            assert len(hints) == 1


class Paces(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.paces: list[fit.Pace] = []

    def tfdp_pace(self, epoch, pace):
        self.paces.append(pace)

"""A real IPython kernel, whose cell trains on two workers."""

import pytest
from jupyter_client import manager

CELL = """
import numpy as np, tfdp

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")

def train(epochs):
    import keras, tfdp
    with tfdp.strategy().scope():
        layer = keras.layers.Dense(1, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((4,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(x, x.sum(1) * 2, batch_size=16, epochs=epochs, shuffle=False, verbose=2)
    return history.history["loss"], model.distribute_strategy.num_replicas_in_sync

workers = tfdp.notebook_launcher(train, args=(2,), workers=2, log_dir="logs")
alone = tfdp.notebook_launcher(train, args=(2,), workers=1, log_dir="alone")
print("replicas", workers[1], alone[1], "equal", np.allclose(workers[0], alone[0], rtol=1e-5))
"""


def run_cell(client, code, seconds):
    """Run a cell; return its output by stream, and the name of what it raised."""
    shown = {"stdout": "", "stderr": "", "error": ""}

    def show(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            shown[content["name"]] += content["text"]
        elif message["msg_type"] == "error":
            shown["error"] = f"{content['ename']}: {content['evalue']}"

    client.execute_interactive(code, timeout=seconds, output_hook=show)
    return shown


@pytest.fixture
def kernel(tmp_path, environment):
    started, client = manager.start_new_kernel(
        kernel_name="python3", cwd=str(tmp_path), env=environment, startup_timeout=60
    )
    try:
        yield client
    finally:
        client.stop_channels()
        started.shutdown_kernel(now=True)


def test_a_cell_trains_and_shows_what_the_workers_print(kernel):
    shown = run_cell(kernel, CELL, 120)
    assert shown["error"] == "", shown
    assert "replicas 2 1 equal True" in shown["stdout"]
    assert shown["stdout"].count("Epoch 2/2") == 2
    failed = run_cell(
        kernel, "tfdp.notebook_launcher(lambda: 1 / 0, workers=2, log_dir='failed')", 60
    )
    assert failed["error"].startswith("Error: <lambda> has failed in one of 2 workers")
    assert "ZeroDivisionError: division by zero" in failed["stderr"]

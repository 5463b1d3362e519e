"""scripts/examples/serve_http.py over a real socket."""

import concurrent.futures
import http.client
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfdp.serving import export

pytestmark = pytest.mark.cluster

EXAMPLE = pathlib.Path(__file__).parents[2] / "scripts" / "examples" / "serve_http.py"
X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])


@pytest.fixture(scope="module")
def address(model, tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("models") / "dense"
    export.export(model, folder)
    options = ["--port=0", "--batch_size=16", "--wait_ms=300"]
    server = subprocess.Popen(
        [sys.executable, EXAMPLE, folder, *options],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield server.stdout.readline().strip().removeprefix("http://")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def ask(address, method, path, body=None):
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_rows_of_concurrent_requests_share_a_call(model, address):
    expected = model.predict(X, verbose=0)
    requests = [X[first : first + 2].tolist() for first in range(0, 48, 2)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(
            pool.map(
                lambda rows: ask(address, "POST", "/v1/models/dense:predict", {"instances": rows}),
                requests,
            )
        )
    assert [status for status, _ in answers] == [200] * 24
    found = np.concatenate([answer["predictions"] for _, answer in answers])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    _, told = ask(address, "GET", "/v1/models/dense/status")
    assert told["rows"] == 48
    assert told["calls"] < 24


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"rows": []}, "'instances'"),
        ({"instances": [[1, 2, 3]]}, "instances have the shape (1, 3), not float32 (?, 4)"),
        ({"instances": [["a", 2, 3, 4]]}, "could not convert string to float: 'a'"),
        ({"instances": 3}, "instances have the shape (), not float32 (?, 4)"),
    ],
)
def test_bad_requests(body, error, address):
    assert ask(address, "POST", "/v1/models/dense:predict", body) == (400, {"error": error})

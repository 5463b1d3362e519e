"""The layout of TensorFlow Serving, read with TensorFlow Serving's own protocol buffers."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfdp import models
from tfdp.serving import export


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    model = models.build("convnet", (8, 8, 1), 10, pixel_max=16.0, dropout=0.25)
    return export.export(
        model,
        tmp_path_factory.mktemp("models") / "digits",
        labels=[f"number {n}" for n in range(10)],
        second_signature="images",
    )


def logs(version):
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path))
    ]


def test_the_files_of_a_version(version):
    assert version.name == "1"
    assert sorted(
        path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()
    ) == [
        "assets.extra/tf_serving_warmup_requests",
        "assets/labels.txt",
        "fingerprint.pb",
        "manifest.json",
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    ]
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    assert [asset.filename for asset in graph.asset_file_def] == ["labels.txt"]
    served = graph.signature_def["serving_default"]
    assert served.method_name == "tensorflow/serving/predict"
    assert served.inputs["image"].tensor_shape.dim[0].size == -1
    assert (version / "assets" / "labels.txt").read_text().splitlines()[3] == "number 3"


def test_every_request_is_one_that_the_model_answers(version):
    loaded = tf.saved_model.load(str(version))
    requests = [log.predict_log.request for log in logs(version)]
    assert [log.WhichOneof("log_type") for log in logs(version)] == ["predict_log"] * 2
    assert [(r.model_spec.name, r.model_spec.signature_name) for r in requests] == [
        ("digits", "serving_default"),
        ("digits", "images"),
    ]
    assert not any(request.model_spec.HasField("version") for request in requests)
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in
                  request.inputs.items()}  # fmt: skip
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert outputs["probabilities"].shape == (1, 10)


def test_a_request_is_what_a_client_sends(version):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "serving_default"
    zeros = np.zeros((1, 8, 8, 1), "uint8")
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(zeros))
    assert logs(version)[0].predict_log.request == request

"""The workers of parameter servers read for themselves: arrays in two ways, and files."""

import json

import keras
import numpy as np
import tensorflow as tf

import tfdp
from tfdp import fit

ROWS = 48
strategy = tfdp.strategy("parameter_server", reading="shard")


class Counts(keras.layers.Layer):
    """Counts how often each number came."""

    def build(self, shape):
        self.seen = self.add_weight(shape=(ROWS,), initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        if training:
            rows = keras.ops.one_hot(keras.ops.cast(inputs[:, 0], "int32"), ROWS)
            self.seen.assign(self.seen + keras.ops.sum(rows, axis=0))
        return inputs


def counted(x, y=None):
    with strategy.scope():
        layer = Counts()
        model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    model.fit(x, y, batch_size=None if y is None else 4, epochs=10, verbose=0)
    return int(model.optimizer.iterations), layer.seen.numpy().astype(int).tolist()


rows = np.arange(ROWS, dtype="float32")[:, None]
for number, part in enumerate(np.split(rows[:, 0], 4)):
    with tf.io.TFRecordWriter(f"rows-{number}.tfrecord") as writer:
        for row in part:
            writer.write(tf.strings.as_string(row).numpy())
files = tf.data.Dataset.list_files("rows-*.tfrecord", shuffle=False)
records = files.flat_map(tf.data.TFRecordDataset).map(lambda r: tf.strings.to_number(r)[None])
batches = records.map(lambda x: (x, x)).batch(4)
batches = batches.apply(tf.data.experimental.assert_cardinality(ROWS // 4))
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.FILE

found = {"shard": counted(rows, rows), "files": counted(batches.with_options(options))}
fit.set_server_options(strategy, fit.ServerOptions(reading="replicated"))
found["replicated"] = counted(rows, rows)
print(json.dumps(found), flush=True)

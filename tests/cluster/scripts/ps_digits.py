"""The digits of test_exported.py on parameter servers: a training loop of the script's own.

    ps_digits.py CONFIG_FILE MODEL.keras

Batch after batch, so that it trains what one device trains; the coordinator saves the model.
"""

import importlib.util
import sys

import keras
import tensorflow as tf

from tfdp import models
from tfdp.data import pipeline, source

_, config_file, output = sys.argv
spec = importlib.util.spec_from_file_location("digits", config_file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
config = module.get_config("quick")
config.data.train_split = "train[:256]"

resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
strategy = tf.distribute.ParameterServerStrategy(resolver)
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
digits = source.open_source(config.data)
keras.utils.set_random_seed(config.seed)
with strategy.scope():
    model = models.build(
        config.model.name,
        digits.input_shape,
        digits.classes,
        pixel_max=digits.pixel_max,
        dropout=0.0,
    )
    variables = [v.value for v in model.trainable_variables]
    momenta = [tf.Variable(tf.zeros(v.shape)) for v in variables]


@tf.function
def step(images, labels):
    def on_replica(images, labels):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(
                labels, model(images, training=True)
            )
            loss = tf.reduce_mean(losses)
        for variable, momentum, gradient in zip(
            variables, momenta, tape.gradient(loss, variables), strict=True
        ):
            momentum.assign(0.9 * momentum - 0.01 * gradient)
            variable.assign_add(momentum)

    strategy.run(on_replica, args=(images, labels))


for images, labels in pipeline.training(digits, config.data, config.seed):
    coordinator.schedule(step, args=(images, labels))
    coordinator.join()
print(f"The first weights lie on {variables[0].device}.")
model.save(output)

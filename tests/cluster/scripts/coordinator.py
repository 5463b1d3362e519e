"""A training loop of its own on parameter servers: plain TensorFlow, run by the chief alone."""

import tensorflow as tf

resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
strategy = tf.distribute.ParameterServerStrategy(resolver)
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
with strategy.scope():
    weights = tf.Variable([0.0, 0.0])
    steps = tf.Variable(0)


def make_dataset():
    x = tf.random.stateless_normal((256, 2), seed=(1, 2))
    y = tf.linalg.matvec(x, tf.constant([3.0, -2.0]))
    return tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(32)


@tf.function
def step(iterator):
    def on_replica(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            error = tf.linalg.matvec(x, weights) - y
            loss = tf.reduce_mean(error * error)
        weights.assign_sub(0.1 * tape.gradient(loss, weights))
        steps.assign_add(1)

    strategy.run(on_replica, args=(next(iterator),))


data = coordinator.create_per_worker_dataset(make_dataset)
iterator = iter(data)
for _ in range(100):
    coordinator.schedule(step, args=(iterator,))
coordinator.join()
print(f"The weights lie on {weights.device}.")
print("Weights:", " ".join(f"{weight:.3f}" for weight in weights.numpy()))
print("Steps:", int(steps.numpy()))

r"""ResNet-50 on the GPUs of this machine: tfdp under MirroredStrategy against Keras's own fit.

    python scripts/benchmarks/gpu.py                    # about 8 minutes on one card

224 x 224 pixels, 256 images a step over all GPUs, out of memory that the GPUs hold, in
mixed_bfloat16 and mixed_float16. The contestants of a precision are interleaved in one process: a
round runs each for some steps; shown is the median over the rounds, and the ratio taken round by
round. Without a GPU it says so and exits 0; it exits 1 if a limit is missed. To try the script
itself on a CPU:

    python scripts/benchmarks/gpu.py --device=CPU --body=small --pixels=32 --images=8 --steps=4 \
        --executions=2 --rounds=1
"""

import argparse
import contextlib
import statistics
import sys
import time

POLICIES = ("mixed_bfloat16", "mixed_float16")
STOCK = "Keras fit, no strategy, XLA"
MINE = "tfdp fit, MirroredStrategy, XLA"
MIRRORED = "Keras fit, MirroredStrategy"  # with XLA it crashes: its all-reduce is inside
# tfdp under MirroredStrategy / Keras without a strategy, images/s.
LIMITS = {"mixed_bfloat16": 1.0, "mixed_float16": 0.97}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="GPU", choices=["GPU", "CPU"])
    parser.add_argument("--body", default="ResNet50", choices=["ResNet50", "small"])
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--images", type=int, default=256, help="a step, over all devices")
    parser.add_argument("--steps", type=int, default=60, help="of a contestant in a round")
    parser.add_argument("--executions", type=int, default=20, help="steps of one graph loop")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import tensorflow as tf

    devices = tf.config.list_physical_devices(options.device)
    if not devices:
        print("There is no GPU that TensorFlow can use: nothing is measured.")
        return
    names = [device.name for device in tf.config.list_logical_devices(options.device)]
    details = tf.config.experimental.get_device_details(devices[0])
    print(
        f"{len(names)} x {details.get('device_name', options.device)}, "
        f"TensorFlow {tf.__version__}; {options.body}, {options.pixels} px, "
        f"{options.images} images a step; "
        f"median of {options.rounds} rounds of {options.steps} steps."
    )
    missed = []
    for policy in POLICIES:
        rates = _measure(policy, names, options)
        print(f"\n{policy}")
        for name, values in rates.items():
            print(f"  {name:34} {statistics.median(values):9,.0f} images/s")
        ratio = statistics.median(a / b for a, b in zip(rates[MINE], rates[STOCK], strict=True))
        gain = statistics.median(a / b for a, b in zip(rates[MINE], rates[MIRRORED], strict=True))
        print(f"  tfdp / Keras without a strategy: {ratio:.3f} (>= {LIMITS[policy]})")
        print(f"  tfdp / Keras under MirroredStrategy: {gain:.2f}")
        if ratio < LIMITS[policy]:
            missed.append(f"{policy}: {ratio:.3f}, wanted >= {LIMITS[policy]}")
    for line in missed:
        print(f"MISSED: {line}")
    sys.exit(bool(missed) and options.device == "GPU")


def _measure(policy: str, devices: list[str], options) -> dict[str, list[float]]:
    """Return the images/s of each contestant, by round."""
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(devices)
    xla = {"jit_compile": True, "steps_per_execution": options.executions}
    contestants = {
        STOCK: _contestant(policy, None, False, options, **xla),
        MINE: _contestant(policy, strategy, True, options, **xla),
        MIRRORED: _contestant(policy, strategy, False, options, jit_compile=False),
    }
    for run in contestants.values():
        run()  # traces and compiles
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            rates[name].append(run())
    return rates


def _contestant(policy: str, strategy, uses_tfdp: bool, options, **compile):
    """Return a function that trains for some steps and returns images/s."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdp

    class Resident(keras.layers.Layer):
        """Numbers of images in, images out of a variable on the device."""

        def build(self, shape):
            del shape
            pixels = (options.images, options.pixels, options.pixels, 3)
            self.pictures = self.add_weight(
                shape=pixels, initializer="random_uniform", trainable=False, name="pictures"
            )

        def call(self, numbers):
            return keras.ops.take(self.pictures, numbers, axis=0)

        def compute_output_shape(self, shape):
            return (shape[0], options.pixels, options.pixels, 3)

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    enable = tfdp.enable if uses_tfdp else tfdp.disable
    enable()
    keras.config.set_dtype_policy(policy)
    with strategy.scope() if strategy else contextlib.nullcontext():
        numbers = keras.Input((), dtype="int32")
        body = keras.applications.ResNet50(
            weights=None,
            input_shape=(options.pixels, options.pixels, 3),
            classifier_activation=None,
        )
        model = keras.Model(numbers, body(Resident()(numbers)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, **compile)
    order = np.arange(options.images, dtype="int32")
    data = tf.data.Dataset.from_tensors((order, order % 1000)).cache().repeat().prefetch(8)

    def run() -> float:
        enable()
        clock = Clock()
        model.fit(data, epochs=1, steps_per_epoch=options.steps, verbose=0, callbacks=[clock])
        return options.images * options.steps / clock.seconds

    return run


if __name__ == "__main__":
    main()

"""Fashion-MNIST, 28x28 pixels: a small convolutional network on 60,000 images.

    apt-get install dataset-fashion-mnist        # or name their folder in TFDP_FASHION_MNIST
    tfdp shards --config=configs/fashion_mnist.py --workers=2
    tfdp train --config=configs/fashion_mnist.py --workers=2

Each worker reads files of its own. Expect a test accuracy of 0.915 after 3 epochs, about a minute
each on two cores; `quick` stops after 2, at about 0.908.
"""

from tfdp import config


def get_config(variant: str = "") -> config.Config:
    if variant not in ("", "quick"):
        raise ValueError(f"configs/fashion_mnist.py:{variant}: the variants are: quick.")
    run = config.Config(name="fashion_mnist")
    run.data.tfds_name = "tfdp_fashion_mnist"
    run.data.global_batch_size = 128
    run.data.shuffle_buffer = 8192
    run.training.learning_rate = 2e-3
    run.training.epochs = 2 if variant == "quick" else 3
    return run

"""Fashion-MNIST, 28x28 pixels: a small convolutional network on 60,000 images.

    apt-get install dataset-fashion-mnist        # or name their folder in TFDP_FASHION_MNIST
    tfdp shards --config=configs/fashion_mnist.py --workers=2
    tfdp train --config=configs/fashion_mnist.py --workers=2

Each worker reads files of its own.
"""

from tfdp import config


def get_config() -> config.Config:
    run = config.Config(name="fashion_mnist")
    run.data.tfds_name = "tfdp_fashion_mnist"
    run.data.global_batch_size = 128
    run.data.shuffle_buffer = 8192
    run.training.learning_rate = 2e-3
    run.training.epochs = 3
    return run

"""Two towers on synthetic clicks: users and items as vectors, their product says who clicks what.

    tfdp train --config=configs/recommender.py --chief --workers=2 --ps=2
    tfdp train --config=configs/recommender.py --config.strategy=one_device

The best test AUC that a model can have is 0.933 (tfdp.datasets.clicks.best_auc). Expect 0.919
after 8 epochs, on the cluster (80 s on 2 cores) and on one device (40 s). `quick` stops after one
epoch, at about 0.81.
"""

from tfdp import config


def get_config(variant: str = "") -> config.Config:
    if variant not in ("", "quick"):
        raise ValueError(f"configs/recommender.py:{variant}: the variants are: quick.")
    run = config.Config(name="recommender")
    run.data.function = "tfdp.datasets.clicks:batches"
    run.data.train_split = "train"
    run.data.test_split = "test"
    run.data.global_batch_size = 1024
    run.data.shuffle_buffer = 400_000
    run.model.name = "tfdp.models.recommenders:two_towers"
    run.training.epochs = 1 if variant == "quick" else 8
    run.servers.min_partition_bytes = 32 << 10
    return run

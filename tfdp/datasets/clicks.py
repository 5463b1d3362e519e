"""Synthetic clicks with a planted structure: who clicks what follows two hidden tables.

    dataset = batches(config.data, "train", tf.distribute.InputContext())    # ({...}, clicked)

A user and an item each have a hidden vector, drawn from a seed alone, so that nothing is stored. A
pair is clicked with the probability sigmoid(SHARPNESS * the vectors' product): no model can know
more than that probability, and the AUC that it reaches is the best there is (`best_auc`). Popular
ids come more often (their rank is drawn log-uniformly), as in real logs.
"""

import numpy as np
import tensorflow as tf

from tfdp import config as config_lib
from tfdp.error import Error

USERS, ITEMS, WIDTH = 3_000, 1_000, 4
SHARPNESS = 4.0
_RECORDS = {"train": 400_000, "test": 40_000}
_SEEDS = {"train": 1, "test": 2}


def batches(
    data: config_lib.Data, split: str, context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """Return the clicks of a split, in batches of config.data.global_batch_size.

    Each pipeline of `context` gets its own part of the records.

    Raises:
        Error: If there is no such split.
    """
    columns = records(split)
    shard = slice(context.input_pipeline_id, None, context.num_input_pipelines)
    users, items, clicked = (column[shard] for column in columns)
    dataset = tf.data.Dataset.from_tensor_slices(({"user": users, "item": items}, clicked))
    if split == "train" and data.shuffle_buffer:
        dataset = dataset.shuffle(data.shuffle_buffer, reshuffle_each_iteration=True)
    return dataset.batch(data.global_batch_size).prefetch(tf.data.AUTOTUNE)


def records(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the users (int64), the items (int64), and whether they clicked (float32, 0 or 1)."""
    users, items, probability = pairs(split)
    random = np.random.default_rng(10 + _SEEDS[split])
    return users, items, (random.random(len(users)) < probability).astype(np.float32)


def pairs(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the users, the items, and the probability of each click."""
    if split not in _RECORDS:
        raise Error(f"The clicks have no split {split!r}. Use one of {', '.join(_RECORDS)}.")
    random = np.random.default_rng(_SEEDS[split])
    users = _popular(random, USERS, _RECORDS[split])
    items = _popular(random, ITEMS, _RECORDS[split])
    hidden = np.random.default_rng(0)
    of_users = hidden.normal(size=(USERS, WIDTH)) / WIDTH**0.5
    of_items = hidden.normal(size=(ITEMS, WIDTH))
    products = np.sum(of_users[users] * of_items[items], axis=1)
    return users, items, 1.0 / (1.0 + np.exp(-SHARPNESS * products))


def best_auc(split: str = "test") -> float:
    """Return the AUC of the true probabilities: no model reaches more, but by luck."""
    _, _, probability = pairs(split)
    _, _, clicked = records(split)
    ranks = np.empty(len(clicked))
    ranks[np.argsort(probability, kind="stable")] = np.arange(1, len(clicked) + 1)
    positive = clicked == 1
    count, rest = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def _popular(random: np.random.Generator, ids: int, size: int) -> np.ndarray:
    """Draw ids from 0 to ids - 1: half of them uniformly, half by a rank drawn log-uniformly."""
    uniform = random.integers(0, ids, size)
    ranked = np.floor(np.exp(random.uniform(0.0, np.log(ids), size))).astype(np.int64)
    return np.where(random.random(size) < 0.5, uniform, np.minimum(ranked, ids - 1))

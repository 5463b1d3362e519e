import pytest

import tfdp
from tfdp import learning_rate
from tfdp.error import Error


class Adam:  # what the rules see of a class is its name, and those of what it is made from
    pass


class MyAdam(Adam):
    pass


class Holder:  # as keras.optimizers.LossScaleOptimizer
    inner_optimizer = MyAdam()


@pytest.mark.parametrize(
    ("rate", "from_batch", "to_batch", "optimizer", "expected"),
    [
        (0.1, 256, 8192, "sgd", 3.2),  # Goyal et al. 2017
        (0.1, 256, 1024, "SGD", 0.4),
        (0.1, 256, 128, "lars", 0.05),
        (1e-3, 256, 1024, "adam", 2e-3),
        (1e-3, 256, 1024, "adamw", 2e-3),
        (1e-3, 256, 1024, "lamb", 2e-3),
        (1e-3, 1024, 256, MyAdam, 5e-4),
        (1e-3, 256, 1024, MyAdam(), 2e-3),
        (1e-3, 256, 1024, Holder(), 2e-3),
    ],
)
def test_rules(rate, from_batch, to_batch, optimizer, expected):
    found = tfdp.scale_learning_rate(rate, from_batch, to_batch, optimizer)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_rule_may_be_named():
    assert tfdp.scale_learning_rate(1.0, 1, 4, "lion", rule="sqrt") == 2.0
    assert tfdp.scale_learning_rate(1.0, 1, 4, "adam", rule="linear") == 4.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, 2, "sgd"), "rate=0.0 is no number above 0. Use one; "),
        ((object, 1, 2, "sgd"), "scale a schedule by the rate that it is made with."),
        ((0.1, 0, 2, "sgd"), "from_batch=0 is not a whole number from 1 up. Use one."),
        ((0.1, 2, 2.0, "sgd"), "to_batch=2.0 is not a whole number from 1 up. Use one."),
        ((0.1, 1, 2, "lion"), "Nothing is known of how the learning rate of 'lion' follows"),
        ((0.1, 1, 2, "sgd", "cubic"), "rule='cubic': use 'linear' or 'sqrt'."),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(Error) as raised:
        tfdp.scale_learning_rate(*arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30:0.1, 60:0.01", [(30.0, 0.1), (60.0, 0.01)]),
        ("0:0.1,1.023:1", [(0.0, 0.1), (1.023, 1.0)]),
        ("0.5:1e-3", [(0.5, 1e-3)]),
        ("cosine", None),
        ("package.module:function", None),
        ("30:0.1, cosine", None),
        ("-1:0.1", None),
    ],
)
def test_milestones(text, expected):
    assert learning_rate.milestones(text) == expected


@pytest.mark.parametrize("text", ["60:0.1, 30:0.01", "30:0.1, 30:0.01"])
def test_milestones_rise(text):
    with pytest.raises(Error, match="do not rise"):
        learning_rate.milestones(text)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("sgd", 0.1, 256, 0.4, 1024, 5.0, "constant"),
            "Optimizer sgd, learning rate 0.1 for 256 -> 0.4 for 1,024 after 5 epochs of warm-up.",
        ),
        (
            ("adam", 1e-3, 0, 1e-3, 64, 1.0, "cosine"),
            "Optimizer adam, learning rate 0.001 after 1 epoch of warm-up, then along a cosine to "
            "0.",
        ),
        (
            ("sgd", 0.1, 0, 0.1, 128, 0.0, "81:0.1, 122:0.01"),
            "Optimizer sgd, learning rate 0.1, then by the schedule 81:0.1, 122:0.01.",
        ),
    ],
)
def test_what_a_run_says(arguments, line):
    assert learning_rate.described(*arguments) == line

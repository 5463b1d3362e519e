import keras
import numpy as np
import pytest

import tfdp
from tfdp import schedules
from tfdp.error import Error

S = keras.optimizers.schedules


def at(schedule, *steps):
    return [float(schedule(np.int64(step))) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "steps", "rates"),
    [
        (
            tfdp.schedules.Warmup(0.4, 10),
            (0, 1, 5, 9, 10, 11, 10**6),
            (0.0, 0.04, 0.2, 0.36, 0.4, 0.4, 0.4),
        ),
        (tfdp.schedules.Warmup(0.4, 10, start=0.1), (0, 5, 10), (0.1, 0.25, 0.4)),
        (tfdp.schedules.Warmup(0.4, 0), (0, 1), (0.4, 0.4)),
        (  # the steps of the schedule inside count from the start of training
            tfdp.schedules.Warmup(S.PiecewiseConstantDecay([20], [0.4, 0.04]), 10),
            (5, 10, 20, 21),
            (0.2, 0.4, 0.4, 0.04),
        ),
        (  # a straight line up to where the other schedule is at the end
            tfdp.schedules.Warmup(S.PolynomialDecay(1.0, 100, 0.0), 50),
            (0, 25, 50, 75),
            (0.0, 0.25, 0.5, 0.25),
        ),
    ],
)
def test_warmup(schedule, steps, rates):
    np.testing.assert_allclose(at(schedule, *steps), rates, rtol=1e-6)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is tfdp.schedules.Warmup
    assert at(again, *steps) == at(schedule, *steps)


def test_the_peak_is_exact():
    for peak in (0.1, 0.3, 0.7, 3.2):
        (found,) = at(tfdp.schedules.Warmup(peak, 7, start=0.01), 7)
        assert found == float(np.float32(peak))


@pytest.mark.parametrize(
    ("factors", "rates"),
    [  # of the steps 0 to 5, with a rate of 2
        ([], [2, 2, 2, 2, 2, 2]),
        ([(3, 0.1)], [2, 2, 2, 0.2, 0.2, 0.2]),
        ([(0, 0.5), (2, 1.0), (5, 0.25)], [1, 1, 2, 2, 2, 0.5]),
        ([(0, 0.5)], [1, 1, 1, 1, 1, 1]),
    ],
)
def test_pieces(factors, rates):
    made = schedules.pieces(2.0, factors)
    found = at(made, *range(6)) if callable(made) else [made] * 6
    np.testing.assert_allclose(found, rates, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, -1), "Warmup: steps=-1 is not a whole number from 0 up. Use one."),
        ((0.1, 1.5), "Warmup: steps=1.5 is not a whole number from 0 up. Use one."),
        (("cosine", 5), "Warmup: schedule='cosine'. Use a schedule or a number from 0 up."),
        ((0.1, 5, -0.1), "Warmup: start=-0.1. Use a number from 0 up."),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(Error) as raised:
        tfdp.schedules.Warmup(*arguments)
    assert str(raised.value) == message

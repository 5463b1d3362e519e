"""What callbacks remember goes into a checkpoint and comes back."""

import keras
import numpy as np
import pytest

from tfdp.fit.recovery import callback_state

KNOWN = {
    "EarlyStopping": lambda folder: keras.callbacks.EarlyStopping(restore_best_weights=True),
    "ReduceLROnPlateau": lambda folder: keras.callbacks.ReduceLROnPlateau(),
    "ModelCheckpoint": lambda folder: keras.callbacks.ModelCheckpoint(f"{folder}/a.keras"),
    "TensorBoard": lambda folder: keras.callbacks.TensorBoard(folder),
    "SwapEMAWeights": lambda folder: keras.callbacks.SwapEMAWeights(),
    "History": lambda folder: keras.callbacks.History(),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_attribute_that_is_kept_is_there_in_this_keras_and_comes_back(name, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    first, second = (KNOWN[name](str(tmp_path)) for _ in range(2))
    for callback in (first, second):
        callback.set_model(model)
        callback.set_params({"steps": 1, "epochs": 1})
    data = {"x": np.ones((4, 2)), "y": np.ones((4, 1)), "validation_data": (np.ones((4, 2)),) * 2}
    model.fit(**data, epochs=2, verbose=0, callbacks=[first])
    second.on_train_begin()
    attributes = callback_state._attributes(first)
    assert attributes
    plain, arrays = callback_state.state(first)
    assert set(plain) == set(attributes)
    callback_state.restore(second, plain, arrays)
    for attribute in attributes:
        for a, b in zip(
            keras.tree.flatten(getattr(first, attribute)),
            keras.tree.flatten(getattr(second, attribute)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


class Own(keras.callbacks.Callback):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_arrays_are_copied():
    own = Own({"seen": np.zeros(2)})
    _, arrays = callback_state.state(own)
    own.state["seen"] += 1
    assert arrays["seen"].tolist() == [0, 0]


def test_what_no_file_holds_is_named():
    with pytest.raises(ValueError, match=r"state_dict\(\) of Own holds a object at 'it\.0'"):
        callback_state.state(Own({"it": [object()]}))


def test_numbers_of_numpy_stay_what_they_are():
    """The best weights of EarlyStopping hold those of scalar variables, which have a shape."""
    numbers = [np.int32(3), np.float64(0.5), np.float32(0.5), np.bool_(True), np.zeros((), "int64")]
    own = Own({"best": numbers, "text": np.str_("a"), "plain": 1.5})
    plain, arrays = callback_state.state(own)
    back = Own({})
    callback_state.restore(back, plain, arrays)
    assert [(x.dtype, x.shape, x) for x in back.state["best"]] == [
        (x.dtype, x.shape, x) for x in numbers
    ]
    assert (back.state["text"], back.state["plain"]) == ("a", 1.5)

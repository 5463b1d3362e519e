import pytest

from tfdp.cluster import Task
from tfdp.launch.restarts import Budget, Decision, Failure

W0, W1 = Task("worker", 0), Task("worker", 1)
FREE = "there was progress: the budget is not touched"
ASKED = "it was asked to end: the budget is not touched"


def failures(*rows):
    return [Failure(task, code, progress) for task, code, progress in rows]


@pytest.mark.parametrize(
    ("max_restarts", "happened", "decisions"),
    [
        (0, failures((W1, 1, (1, 2))), [Decision(False, 0.0, "")]),
        # Without progress: each costs, and the wait doubles.
        (
            2,
            failures((W1, 1, None), (W0, 1, None), (W1, 1, None)),
            [
                Decision(True, 1.0, "restart 1 of 2"),
                Decision(True, 2.0, "restart 2 of 2"),
                Decision(False, 0.0, "no progress, and max_restarts=2 is used up"),
            ],
        ),
        # With progress each time: for ever, and no longer wait.
        (
            1,
            failures(*((W1, 137, (epoch, 5)) for epoch in range(6))),
            [Decision(True, 1.0, FREE)] * 6,
        ),
        # Back to the beginning after a restart is no progress.
        (
            1,
            failures((W1, 1, (0, 9)), (W1, 2, (0, 3)), (W1, 1, (0, 9))),
            [
                Decision(True, 1.0, FREE),
                Decision(True, 2.0, "restart 1 of 1"),
                Decision(False, 0.0, "no progress, and max_restarts=1 is used up"),
            ],
        ),
        # Three times the same at the same step, whatever is left.
        (
            100,
            failures((W1, 1, (3, 4)), (W1, 1, (3, 4)), (W1, 1, (3, 4))),
            [
                Decision(True, 1.0, FREE),
                Decision(True, 2.0, "restart 1 of 100"),
                Decision(False, 0.0, "the same failure 3 times, epoch 3, step 4"),
            ],
        ),
        (
            100,
            failures((W1, 1, None), (W1, 1, None), (W1, 1, None)),
            [
                Decision(True, 1.0, "restart 1 of 100"),
                Decision(True, 2.0, "restart 2 of 100"),
                Decision(False, 0.0, "the same failure 3 times, before any reported step"),
            ],
        ),
        # Who was asked to end, and has saved, spends nothing.
        (
            1,
            failures((W1, 1, (0, 9)), (W0, 143, (0, 9)), (W1, 143, (0, 9)), (W1, 1, (0, 9))),
            [
                Decision(True, 1.0, FREE),
                Decision(True, 1.0, ASKED),
                Decision(True, 1.0, ASKED),
                Decision(True, 2.0, "restart 1 of 1"),
            ],
        ),
        # Another code, or another task, is another failure.
        (
            100,
            failures((W1, 1, (1,)), (W1, 1, (1,)), (W0, 1, (1,)), (W0, 2, (1,)), (W0, 2, (2,))),
            [
                Decision(True, 1.0, FREE),
                Decision(True, 2.0, "restart 1 of 100"),
                Decision(True, 4.0, "restart 2 of 100"),
                Decision(True, 8.0, "restart 3 of 100"),
                Decision(True, 1.0, FREE),
            ],
        ),
    ],
)
def test_decisions(max_restarts, happened, decisions):
    budget = Budget(max_restarts)
    assert [budget.decide(failure) for failure in happened] == decisions
    assert budget.restarts == sum(decision.restart for decision in decisions)


def test_the_wait_has_an_end():
    budget = Budget(50, first_delay_seconds=0.5, longest_delay_seconds=3)
    delays = [budget.decide(Failure(W0, code)).delay_seconds for code in range(1, 7)]
    assert delays == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]

"""What the workers of parameter servers report of their steps, added up in the coordinator.

totals = SummedReports(steps, "train")
totals.add(report); totals.logs()
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdp.compat import parameter_server
from tfdp.fit import logs as logs_lib
from tfdp.fit.servers import worker_step


class SummedReports:
    """The sum of reports; of logs of a train_step's own it keeps the last, as Keras does.

    Attributes:
        steps: How many steps there were.
        stalest: The largest staleness, in steps between reading the weights and the update.
    """

    def __init__(self, steps: worker_step.RemoteSteps, kind: str):
        self._steps = steps
        self._kind = kind
        self._sum: Any = None
        self._last: Any = None
        steps.model.reset_metrics()
        # What a fresh metric holds, and more where a reset_state of the user's own keeps some.
        self._before = [parameter_server.stored_value(metric).numpy() for metric in steps.metrics]
        self.steps = 0
        self.stalest = 0

    def add(self, report: np.ndarray) -> None:
        """Add a report."""
        self._sum = report if self._sum is None else self._sum + report
        self._last = report
        self.steps += round(report[0])
        self.stalest = max(self.stalest, round(report[2] / max(1.0, report[0])))

    @property
    def staleness(self) -> float:
        """Mean number of steps that were applied between reading the weights and the update."""
        return float(self._sum[2] / self.steps) if self.steps else 0.0

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return what `resume` needs: arrays, and plain data."""
        arrays = {"sum": self._sum, "last": self._last} if self._sum is not None else {}
        arrays = {name: np.array(value) for name, value in arrays.items()}
        arrays |= {f"before/{i:05d}": np.array(value) for i, value in enumerate(self._before)}
        names = self._steps.names.get(self._kind)
        extras = self._steps.extras.get(self._kind, {})
        return arrays, {
            "steps": self.steps,
            "stalest": self.stalest,
            "names": names,
            "extras": {name: list(shape) for name, shape in extras.items()},
        }

    def resume(self, arrays: Mapping[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.steps, self.stalest = plain["steps"], plain["stalest"]
        self._before = [np.array(arrays[n]) for n in sorted(arrays) if n.startswith("before/")]
        if "sum" in arrays:
            self._sum, self._last = np.array(arrays["sum"]), np.array(arrays["last"])
            # A step that is not traced yet has told neither.
            self._steps.names.setdefault(self._kind, plain["names"])
            extras = {name: tuple(shape) for name, shape in plain["extras"].items()}
            self._steps.extras.setdefault(self._kind, extras)

    def logs(self) -> dict[str, Any]:
        """Make the model's metrics hold the sum; return the logs."""
        steps = self._steps
        steps.model.reset_metrics()
        if self._sum is None:
            return {}
        rows, at = max(self._last[1], 1.0), 3
        extra: dict[str, Any] = {}
        for name, shape in steps.extras[self._kind].items():
            size = int(np.prod(shape))
            extra[name] = self._last[at : at + size].reshape(shape) / rows
            at += size
        for metric, start in zip(steps.metrics, self._before, strict=True):
            value = start + self._sum[at : at + start.size].reshape(start.shape)
            at += start.size
            if np.issubdtype(start.dtype, np.integer):
                value = np.rint(value)
            parameter_server.stored_value(metric).assign(value.astype(start.dtype))
        held = logs_lib.flat(steps.model.get_metrics_result())
        names = steps.names[self._kind]
        if names is None:
            return held
        return {name: extra[name] if name in extra else held[name] for name in names}

"""One task of a job whose hosts a platform chooses, such as Slurm or Ray.

    python -m tfdp.run -m tfdp.inference.task ORDER

It shares the job with the other tasks through its folder, as workers of one machine do (see
claims): each takes the next part that is not there and that no other holds. Nobody watches it but
its platform.
"""

import os
import sys
import tempfile

from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.settings import Order
from tfdp.inference.status import Status
from tfdp.inference.worker import make


def main(argv: list[str]) -> None:
    """Make parts until none is missing."""
    with tempfile.TemporaryFile() as memory:
        status = Status(memory.fileno())
        try:
            make(Order.from_json(argv[0]), status)
        except (InferenceError, JobFailed) as error:
            sys.exit(f"tfdp: {error}")
        print("All parts are there.", flush=True)
        sys.stderr.flush()
        os._exit(0)  # not through TensorFlow's destructors, which can take seconds


if __name__ == "__main__":
    main(sys.argv[1:])

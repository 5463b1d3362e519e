"""How long it takes until tfdp answers: imports without TensorFlow, and each verb's --help.

    python scripts/benchmarks/startup.py

Prints the median of 5 fresh processes for each, Python's own start included, and exits with 1 when
one of them is over the limit of 0.3 s.
"""

import statistics
import subprocess
import sys
import time

from tfdp import cli

LIMIT_SECONDS = 0.3
PROCESSES = 5

PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import tfdp.launch, tfdp.cluster, tfdp.config": [
        "-c",
        "import tfdp.launch, tfdp.cluster, tfdp.config",
    ],
    "tfdp --help": ["-m", "tfdp", "--help"],
    **{f"tfdp {verb} --help": ["-m", "tfdp", verb, "--help"] for verb in cli.VERBS},
}


def seconds(arguments: list[str]) -> float:
    """Return the seconds that a fresh Python takes from its start to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> int:
    seconds(["-m", "tfdp", "--help"])  # compiles what was never imported
    width = max(map(len, PROGRAMS))
    over = []
    for name, arguments in PROGRAMS.items():
        median = statistics.median(seconds(arguments) for _ in range(PROCESSES))
        if median > LIMIT_SECONDS:
            over.append(name)
        print(f"{name:{width}}  {median:.3f} s")
    print(f"Limit: {LIMIT_SECONDS} s. Over it: {', '.join(over) or 'none'}.")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

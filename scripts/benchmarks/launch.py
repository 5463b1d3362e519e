"""How fast and how cleanly the launcher works, with tasks that need no TensorFlow.

    python scripts/benchmarks/launch.py              # all of it, some 3 minutes
    python scripts/benchmarks/launch.py detection    # or kills, overhead

detection   200 times a task is killed: how long until another is told to end. Limit: 1 s.
kills       1,000 times a task is killed, in 600 runs and in one run with 400 restarts: nothing may
            be left of it, and descriptors and threads stay what they were. Limit: 10 minutes.
overhead    from the command to the script's first line, under `tfdp launch` and without it.
            Limit: 0.3 s.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from tfdp.cluster import Task
from tfdp.launch import local
from tfdp.launch.plan import TaskProcess

# Each has a child of its own, which is to end with it.
CHILD = (
    "import os, signal, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "with open('pids', 'a') as file: file.write(f'{os.getpid()} {child.pid}\\n')\n"
)
# Told to end, it says when.
WAITS = CHILD + (
    "def end(*_):\n"
    "    open('told', 'w').write(repr(time.monotonic()))\n"
    "    os._exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "open('ready', 'w').close()\n"
    "while True: signal.pause()\n"
)
# Killed as soon as the other is there.
KILLED = CHILD + (
    "open('ready').read()\n"
    "open('killed', 'w').write(repr(time.monotonic()))\n"
    "os.kill(os.getpid(), signal.SIGKILL)\n"
)
FURTHER = (
    "from tfdp.launch import progress\n"
    "count = int(os.environ.get('TFDP_RESTART', '0'))\n"
    "progress.report_progress(count + 1)\n"
    "if count == COUNT: os._exit(0)\n"
)


def processes(sources: dict[str, str]) -> list[TaskProcess]:
    return [
        TaskProcess(Task("worker", index), "127.0.0.1", (sys.executable, "-S", "-c", source))
        if "tfdp" not in source
        else TaskProcess(Task("worker", index), "127.0.0.1", (sys.executable, "-c", source))
        for index, source in enumerate(sources.values())
    ]


def run(sources: dict[str, str], **named: object) -> int:
    for name in ("told", "killed"):
        pathlib.Path(name).unlink(missing_ok=True)
    with open(os.devnull, "wb") as nothing:
        return local.run(processes(sources), "logs", stdout=nothing, stderr=nothing, **named)


def left() -> list[int]:
    """The processes that were written down and still run a second later."""
    pids = [int(pid) for pid in pathlib.Path("pids").read_text().split()]
    pathlib.Path("pids").unlink()
    until = time.monotonic() + 1.0
    while (pids := [pid for pid in pids if runs(pid)]) and time.monotonic() < until:
        pass  # what was killed may take a moment to be gone
    return pids


def runs(pid: int) -> bool:
    """Whether a process runs: one that was killed may wait for its parent to be told."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def detection() -> bool:
    seconds = []
    for _ in range(200):
        if run({"waits": WAITS, "killed": KILLED}) != 137:
            raise SystemExit("A run did not end with the kill.")
        told, killed = (float(pathlib.Path(name).read_text()) for name in ("told", "killed"))
        seconds.append(told - killed)
        if left():
            raise SystemExit("A process was left.")
    print(
        f"detection: 200 kills, median {statistics.median(seconds) * 1e3:.1f} ms, "
        f"worst {max(seconds) * 1e3:.1f} ms (limit 1000 ms)"
    )
    return max(seconds) < 1.0


def kills() -> bool:
    begin = time.monotonic()
    orphans: list[int] = []
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(600):
        if run({"waits": WAITS, "killed": KILLED}) != 137:
            raise SystemExit("A run did not end with the kill.")
        orphans += left()
    restarted = KILLED.replace(CHILD, CHILD + FURTHER.replace("COUNT", "400"))
    waits = WAITS.replace(
        "open('ready', 'w')",
        "open('ready', 'w') if os.environ.get('TFDP_RESTART') != '400' else os._exit(0)",
    )
    options = {"max_restarts": 1, "restart_delay_seconds": 0.0}
    code = run({"waits": waits, "killed": restarted}, **options)
    orphans += left()
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    took = time.monotonic() - begin
    print(
        f"kills: 600 runs and 400 restarts in {took:.0f} s (limit 600 s), exit code {code}; "
        f"{len(orphans)} processes left; descriptors {before[0]} -> {after[0]}, "
        f"threads {before[1]} -> {after[1]}"
    )
    return took <= 600 and code == 0 and not orphans and before == after


def first_line(command: list[str]) -> float:
    """Return the seconds from the start of a command to the first line of its script."""
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("first line ")]
    return float(lines[0].split()[-1]) - begin


def overhead() -> bool:
    pathlib.Path("script.py").write_text("import time\nprint('first line', time.time())\n")
    pathlib.Path("imports.py").write_text(
        "import tensorflow, keras, time\nprint('first line', time.time())\n"
    )
    tfdp = str(pathlib.Path(sys.executable).with_name("tfdp"))
    launch = [tfdp, "launch", "--log_dir=logs"]
    commands = {
        "python script.py": [sys.executable, "script.py"],
        "tfdp launch --workers=1 -- script.py": [*launch, "--", "script.py"],
        "tfdp launch --workers=2 -- script.py": [*launch, "--workers=2", "--", "script.py"],
        "python imports.py (TensorFlow, Keras)": [sys.executable, "imports.py"],
        "tfdp launch --workers=1 -- imports.py": [*launch, "--", "imports.py"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(7):  # in turn, so that a change of the machine meets all
        for name, command in commands.items():
            seconds[name].append(first_line(command))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"overhead: {median:6.3f} s to the first line: {name}")
    scripts = {"script.py": "python script.py", "imports.py": "python imports.py"}
    most = 0.0
    for name, median in medians.items():
        if name.startswith("tfdp"):
            (plain,) = [medians[n] for n in medians if n.startswith(scripts[name.split()[-1]])]
            print(f"overhead: {median - plain:6.3f} s over python (limit 0.300 s): {name}")
            most = max(most, median - plain)
    return most <= 0.3


def main(names: list[str]) -> int:
    benchmarks = {"detection": detection, "kills": kills, "overhead": overhead}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.mkfifo("ready")
        for name in names or benchmarks:
            results.append(benchmarks[name]())
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

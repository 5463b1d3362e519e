"""A training whose tasks and launcher are killed at random, against one left alone.

    python tests/cluster/soak.py --kills=100 --seed=1

Half of the kills fall on a run of one worker, half on one of two. Each is a SIGKILL of a task, of
the launcher, or of all of them. A run that has come to its end is compared, and another begins
until all kills are done. Exits 1 if any differs.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from cluster import processes

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "soaking.py")
# A start takes about 8 s on two cores: kills find it, and the training behind it.
LONGEST_SECONDS = 16.0
STEP_SECONDS = 0.02
RUN_SECONDS = 600


def started(folder, environment, workers):
    """A launcher with a process group of its own."""
    command = [sys.executable, "-m", "tfdp", "launch", f"--workers={workers}", "--log_dir=logs"]
    command += ["--max-restarts=1000", "--", SCRIPT, str(STEP_SECONDS)]
    with open(folder / "launcher.log", "ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def results(folder, workers):
    return [json.loads((folder / f"result-{w}.json").read_text()) for w in range(workers)]


def undisturbed(folder, environment, workers):
    folder.mkdir()
    launcher = started(folder, environment, workers)
    assert launcher.wait(RUN_SECONDS) == 0, (folder / "launcher.log").read_text()[-4000:]
    return results(folder, workers)


def kill(launcher, victim, rng):
    """Kill what the plan names; return it in words, or "" where there was nothing to kill."""
    tasks = sorted(
        pid
        for pid, command in processes.family(launcher.pid).items()
        if "-m tfdp.run" in command and pid != launcher.pid
    )
    targets = {"launcher": [launcher.pid], "all": [launcher.pid, *tasks]}.get(victim)
    if targets is None:
        targets = [rng.choice(tasks)] if tasks else []
    for pid in targets:
        os.kill(pid, signal.SIGKILL)
    return victim if targets else ""


def disturbed(folder, environment, workers, kills, rng):
    """Run to the end with at most so many kills; return how many there were, by victim."""
    folder.mkdir()
    done = {}
    launcher = started(folder, environment, workers)
    try:
        while sum(done.values()) < kills:
            try:
                code = launcher.wait(rng.uniform(0.5, LONGEST_SECONDS))
            except subprocess.TimeoutExpired:
                victim = rng.choice(["task", "task", "launcher", "all"])
                if name := kill(launcher, victim, rng):
                    done[name] = done.get(name, 0) + 1
                continue
            if code == 0:
                return done
            # Killed, or given up after three kills at the same step: whoever looks starts it again.
            launcher = started(folder, environment, workers)
        until = time.monotonic() + RUN_SECONDS
        while launcher.wait(max(1.0, until - time.monotonic())) != 0:
            launcher = started(folder, environment, workers)
        return done
    finally:
        launcher.kill()
        launcher.wait()


def soak(root, environment, workers, kills, seed):
    """Return the number of kills, of completed runs, and what differs, in words."""
    expected = undisturbed(root / f"{workers}-undisturbed", environment, workers)
    rng, total, runs, different = random.Random(seed), 0, 0, []
    while total < kills:
        folder = root / f"{workers}-{runs}"
        done = disturbed(folder, environment, workers, kills - total, rng)
        total, runs = total + sum(done.values()), runs + 1
        for worker, (ours, theirs) in enumerate(
            zip(results(folder, workers), expected, strict=True)
        ):
            names = [name for name in theirs if ours[name] != theirs[name]]
            if names:
                different.append(f"{folder}, worker {worker}: {', '.join(names)}")
        epochs = len(expected[0]["epochs"])
        print(
            f"{workers} worker(s), run {runs}: {done}, {epochs} epochs, "
            f"{'DIFFERENT' if different else 'equal'}",
            flush=True,
        )
    return total, runs, different


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, action="append")
    options = parser.parse_args()
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("TF_CONFIG", "TFDP_"))}
    environment = {**kept, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    every = options.workers or [1, 2]
    root = pathlib.Path(tempfile.mkdtemp(prefix="tfdp-soak-"))
    different = []
    for place, workers in enumerate(every):
        kills = (options.kills + place) // len(every)
        total, runs, found = soak(root, environment, workers, kills, options.seed + workers)
        print(f"{workers} worker(s): {total} kills, {runs} runs, {len(found)} different")
        different += found
    for line in different:
        print("DIFFERENT:", line)
    print(f"Logs: {root}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()

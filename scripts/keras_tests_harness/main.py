"""Run the tests that Keras ships in its wheel under one of tfdp's strategies.

    scripts/keras_tests --strategy=mirrored                              # all files
    scripts/keras_tests --strategy=multi_worker trainers/trainer_test.py

Each file runs in a process of its own (two workers for multi_worker; a chief, two workers and a ps
in one process for parameter_server, with max_staleness=0); --strategy=none leaves tfdp out, and
shows what fails with Keras alone. What may fail and why, and which files are left out and why, is
in expected.toml. Exits with 0 when nothing else has failed, and everything of that list still
fails. A test that takes longer than three minutes has failed, and a worker that waits for another
for longer than a minute too: the processes are then killed, and others go on after that test.
"""

import argparse
import dataclasses
import fnmatch
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STRATEGIES = ("one_device", "mirrored", "multi_worker", "parameter_server")
FOLDERS = ("trainers", "callbacks", "models", "saving", "metrics", "losses", "optimizers")
# A test of the other folders costs several processes much time and shows them little: what it
# makes under a scope does not depend on how many processes there are.
FOLDERS_OF_CLUSTERS = ("trainers", "callbacks")
NEEDED = ("scipy", "grain")
START_SECONDS, TEST_SECONDS, PEER_SECONDS, FAILED_SECONDS = 180, 180, 60, 5


@dataclasses.dataclass
class Outcome:
    """What became of a test."""

    outcome: str
    message: str = ""


class Attempt:
    """One start of the process (or of the workers) that runs a file, watched until it ends."""

    def __init__(self, strategy: str, file: str, done: set[str], folder: str, options: list[str]):
        self.workers = 2 if strategy == "multi_worker" else 1
        self.results = f"{folder}/results"
        self.log = pathlib.Path(folder) / "log"
        pathlib.Path(folder, "done").write_text("\n".join(done))
        script = [str(HERE / "task.py"), strategy, file, self.results, f"{folder}/done", *options]
        command = [sys.executable, *script]
        if strategy == "multi_worker":
            launch = ["-m", "tfdp", "launch", "--workers=2", f"--log_dir={folder}/logs"]
            command = [sys.executable, *launch, "--", *script]
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
            )

    def lines(self, worker: int) -> list[dict]:
        path = pathlib.Path(f"{self.results}-{worker}")
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def run(self) -> tuple[dict[str, Outcome], bool]:
        """Return the outcomes, and whether the file has come to its end."""
        try:
            stopped = self.watch()
        finally:
            self.kill()
        seen = [self.lines(worker) for worker in range(self.workers)]
        outcomes: dict[str, Outcome] = {}
        for name in dict.fromkeys(b["begins"] for lines in seen for b in lines if "begins" in b):
            ends = {w: e for w, lines in enumerate(seen) for e in lines if e.get("ends") == name}
            outcomes[name] = self.merge(ends, stopped)
        return outcomes, all(any("finished" in line for line in lines) for lines in seen)

    def merge(self, ends: dict[int, dict], stopped: str) -> Outcome:
        failed = {worker: end for worker, end in ends.items() if end["outcome"] == "failed"}
        messages = [f"worker {worker}: {end['message']}" for worker, end in failed.items()]
        if len(ends) < self.workers:
            messages.insert(0, stopped or f"the process ended: {self.log.read_text()[-2000:]}")
        if messages:
            return Outcome("failed", "\n".join(messages))
        return Outcome(next(iter(ends.values()))["outcome"])

    def watch(self) -> str:
        """Wait for the end, and say what has taken too long, if anything has."""
        counts: list[int] = []
        changed = time.monotonic()
        while self.process.poll() is None:
            time.sleep(0.25)
            now = time.monotonic()
            seen = [self.lines(worker) for worker in range(self.workers)]
            if [len(lines) for lines in seen] != counts:
                counts, changed = [len(lines) for lines in seen], now
            waited = now - changed
            last = [lines[-1] if lines else {} for lines in seen]
            if any("finished" in one for one in last) and waited > 5:
                return ""
            if not all("begins" in one or "ends" in one for one in last):
                if waited > START_SECONDS:
                    return f"nothing has begun for {START_SECONDS} s"
            elif any("ends" in one for one in last) and any("begins" in one for one in last):
                if any(one.get("outcome") == "failed" for one in last):
                    if waited > FAILED_SECONDS:  # it has failed, whatever the other does
                        return "another worker has failed in it"
                elif waited > PEER_SECONDS:
                    return f"one worker has ended this test and the other has not: {waited:.0f} s"
            elif waited > TEST_SECONDS:
                return f"has not ended for {TEST_SECONDS} s"
        return ""

    def kill(self) -> None:
        """End the launcher and the tasks; TensorFlow's tasks do not end by SIGTERM."""
        pids = [line["pid"] for w in range(self.workers) for line in self.lines(w) if "pid" in line]
        for kill, pid in [(os.killpg, self.process.pid), *((os.kill, pid) for pid in pids)]:
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def run_file(strategy: str, file: str, options: list[str]) -> dict[str, Outcome]:
    """Run a file, starting again after a test that ended the process or left it in pieces."""
    outcomes: dict[str, Outcome] = {}
    while True:
        with tempfile.TemporaryDirectory(prefix="keras-tests-") as folder:
            attempt = Attempt(strategy, file, set(outcomes), folder, options)
            more, finished = attempt.run()
            log = attempt.log.read_text()
        began = set(more) - set(outcomes)
        outcomes.update(more)
        if finished:
            return outcomes
        if not began:
            outcomes[file] = Outcome("failed", f"no test has begun: {log[-3000:]}")
            return outcomes


@dataclasses.dataclass
class Expected:
    """An entry of expected.toml: tests that may fail under some strategies ("all": with any)."""

    strategies: list[str]
    tests: list[str]
    reason: str
    timing: bool = False  # fails at times only: no fault when it passes

    def holds(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.tests)


def read(path: pathlib.Path, strategy: str) -> tuple[list[Expected], list[str]]:
    """Return what may fail under a strategy, and the patterns of files that are left out."""
    kept = tomllib.loads(path.read_text())
    entries = [Expected(**entry) for entry in kept["expected"]]
    for entry in entries:
        unknown = set(entry.strategies) - {*STRATEGIES, "all"}
        if unknown or not entry.reason:
            raise ValueError(f"{path}: {entry} needs a reason and known strategies.")
    left_out = [
        pattern
        for entry in kept["left_out"]
        if {strategy, "all"} & set(entry["strategies"])
        for pattern in entry["files"]
    ]
    return [e for e in entries if {strategy, "all"} & set(e.strategies)], left_out


def choose(source: pathlib.Path, strategy: str, left_out: list[str]) -> list[str]:
    """Return Keras's test files, relative to keras/src, but those that are left out."""
    several = strategy in ("multi_worker", "parameter_server")
    found = [
        str(path.relative_to(source))
        for folder in (FOLDERS_OF_CLUSTERS if several else FOLDERS)
        for path in sorted((source / folder).rglob("*_test.py"))
    ]
    return [f for f in found if not any(fnmatch.fnmatchcase(f, p) for p in left_out)]


def install() -> None:
    """Install what Keras's tests import, beside tfdp's own dependencies."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *missing], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/keras_tests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--strategy", choices=(*STRATEGIES, "none"), required=True)
    parser.add_argument("--stock", action="store_true", help="leave Keras's own fit in its place")
    parser.add_argument("--report", help="write each test's outcome to this file, as JSON")
    parser.add_argument("files", nargs="*", help="such as trainers/trainer_test.py; all without")
    arguments = parser.parse_args()
    strategy = arguments.strategy
    expected, left_out = read(HERE / "expected.toml", strategy)
    install()
    source = pathlib.Path(importlib.util.find_spec("keras").submodule_search_locations[0]) / "src"
    files = arguments.files or choose(source, strategy, left_out)
    unknown = [file for file in files if not (source / file).is_file()]
    if unknown:
        parser.error(f"{source} does not hold {', '.join(unknown)}.")

    outcomes: dict[str, Outcome] = {}
    rows = []
    for file in files:
        begin = time.monotonic()
        ran = run_file(strategy, file, ["--stock"] if arguments.stock else [])
        outcomes.update(ran)
        rows.append(row(file, ran, expected))
        print(f"{rows[-1]} {time.monotonic() - begin:5.0f} s", flush=True)
        if arguments.report:
            report = {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}
            pathlib.Path(arguments.report).write_text(json.dumps(report, indent=1))
    code = judge(outcomes, expected, files)
    print(f"\n{strategy:44} passed skipped  failed as listed, and beside the list")
    print("\n".join([*rows, row("all", outcomes, expected)]))
    sys.exit(code)


def row(title: str, outcomes: dict[str, Outcome], expected: list[Expected]) -> str:
    failed = [name for name, outcome in outcomes.items() if outcome.outcome == "failed"]
    known = sum(any(entry.holds(name) for entry in expected) for name in failed)
    counts = [sum(o.outcome == kind for o in outcomes.values()) for kind in ("passed", "skipped")]
    return f"{title:44} {counts[0]:6} {counts[1]:7} {known:7} {len(failed) - known:6}"


def judge(outcomes: dict[str, Outcome], expected: list[Expected], files: list[str]) -> int:
    """Print what has failed beside the list, and what of the list has not; 0 if neither."""
    failed = {name for name, outcome in outcomes.items() if outcome.outcome == "failed"}
    beside = [name for name in failed if not any(entry.holds(name) for entry in expected)]
    for name in sorted(beside):
        print(f"\nFAILED {name}\n{outcomes[name].message[:700]}")
    stale = [
        pattern
        for entry in expected
        for pattern in entry.tests
        if pattern.split("::")[0] in files
        and not entry.timing
        and not any(fnmatch.fnmatchcase(name, pattern) for name in failed)
    ]
    for pattern in stale:
        print(f"STALE  {pattern}: nothing of it fails. Take it out of expected.toml.")
    return 1 if beside or stale else 0


if __name__ == "__main__":
    main()

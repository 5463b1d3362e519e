"""Draws programs (tests/fit/programs.py), runs each on one device and on replicas, and compares.

    scripts/fuzz --examples=100                                # 2 replicas in one process
    scripts/fuzz --examples=100 --strategy=multi_worker        # 2 workers
    scripts/fuzz --examples=100 --strategy=parameter_server    # 2 workers, 1 or 2 servers
    scripts/fuzz --program='Program(layers=("dense",))'        # this one

A program whose numbers move as far on one device when its first weights change by a bit differs
by rounding. Prints each program that differs or crashes, to be pasted into --program, and in the
end `N programs, D differ, C crashed`; exits 1 if any did. The same seed draws the same programs. A
program takes 3 to 10 s. They run in processes that are started anew every so many programs, and
after a crash; a program without an answer in --patience seconds counts as crashed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

TESTS = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))
START_SECONDS = 90
# What rounding, that a program makes more of, can come to; see Task._moved_by_a_bit.
_LARGEST_ROUNDING = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument(
        "--strategy",
        choices=["mirrored", "multi_worker", "parameter_server"],
        default="mirrored",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many at the beginning")
    parser.add_argument("--program", help="run this program, not drawn ones")
    parser.add_argument("--unmended", action="store_true", help="draw what meets known faults too")
    parser.add_argument("--simplify", action="store_true", help="reduce what fails")
    parser.add_argument("--patience", type=int, default=150, help="seconds for one program")
    parser.add_argument("--chunk", type=int, default=25, help="programs of one process")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        folder, first, stop, servers = options.task
        Task(options, pathlib.Path(folder)).run(int(first), int(stop), int(servers))
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with tempfile.TemporaryDirectory() as folder:
        return _all(options, pathlib.Path(folder))


def _all(options: argparse.Namespace, folder: pathlib.Path) -> int:
    lines = [options.program] if options.program else _drawn(options)
    (folder / "programs").write_text("".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} programs, seed {options.seed}, {options.strategy}", flush=True)
    begin = time.monotonic()
    answers: dict[int, dict[str, Any]] = {}
    processes = 0
    while (first := next((i for i in range(len(lines)) if i not in answers), None)) is not None:
        stop = min(first + options.chunk, len(lines))
        end = _chunk(options, folder, range(first, stop), 1 + processes % 2, lines, answers)
        processes += 1
        if first not in answers:
            answers[first] = {"kind": "crashed", "error": end}
            _tell(lines[first], answers[first])
    kinds = [answer["kind"] for answer in answers.values()]
    differ, crashed = kinds.count("differs"), kinds.count("crashed")
    took = (time.monotonic() - begin) / max(1, len(lines))
    print(
        f"{kinds.count('design')} differ by design, {kinds.count('rounding')} by rounding that one "
        f"device makes more of too, {kinds.count('known')} by known faults, "
        f"{kinds.count('invalid')} fail on one device too; {took:.1f} s each"
    )
    print(f"{len(lines)} programs, {differ} differ, {crashed} crashed")
    return int(bool(differ or crashed))


def _drawn(options: argparse.Namespace) -> list[str]:
    """Draw in a process of its own: this one stays without TensorFlow."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fit import programs\n"
        "drawn = programs.drawn(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]=='')\n"
        "print('\\n'.join(map(repr, drawn)))"
    )
    words = [str(TESTS), str(options.examples), str(options.seed), options.strategy]
    words.append("unmended" if options.unmended else "")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[options.skip :]


def _tell(line: str, answer: dict[str, Any]) -> None:
    if answer["kind"] in ("ok", "design", "rounding", "known"):
        return
    print(f"\n{answer['kind']}: {answer.get('simple', line)}")
    if "simple" in answer:
        print(f"  simplified from: {line}")
    if answer.get("found"):
        worst = sorted(answer["found"].items(), key=lambda item: -item[1])
        print("  " + ", ".join(f"{name}: {by:.2g}" for name, by in worst[:8]))
    if answer.get("error"):
        print("  " + answer["error"].strip().replace("\n", "\n  ")[-1500:])
    sys.stdout.flush()


def _chunk(
    options: argparse.Namespace,
    folder: pathlib.Path,
    numbers: range,
    servers: int,
    lines: list[str],
    answers: dict[int, dict[str, Any]],
) -> str:
    """Run programs in new processes; add to the answers, and return how the processes ended."""
    outputs = [folder / f"output-{worker}" for worker in (0, 1)]
    for output in outputs:
        output.write_text("")
    words = [str(pathlib.Path(__file__)), f"--strategy={options.strategy}"]
    words += ["--simplify"] * options.simplify
    words += ["--task", str(folder), str(numbers.start), str(numbers.stop), str(servers)]
    command = [sys.executable, *words]
    if options.strategy == "multi_worker":
        launch = ["-m", "tfdp", "launch", "--workers=2", f"--log_dir={folder / 'logs'}"]
        command = [sys.executable, *launch, "--", *words]
    end = ""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        size, since = 0, time.monotonic() + START_SECONDS
        try:
            while process.poll() is None and not end:
                time.sleep(0.2)
                now = sum(output.stat().st_size for output in outputs)
                if now != size:
                    size, since = now, time.monotonic()
                    _take(outputs, lines, answers)
                if time.monotonic() - since > options.patience:
                    end = f"no answer in {options.patience} s"
        finally:
            # Its tasks end with the launcher; SIGTERM would not end TensorFlow.
            process.kill()
            process.wait()
    _take(outputs, lines, answers)
    told = (folder / "log").read_text(errors="replace")[-1500:]
    return end or f"the process ended with {process.returncode}\n{told}"


def _take(
    outputs: list[pathlib.Path], lines: list[str], answers: dict[int, dict[str, Any]]
) -> None:
    """Add what the tasks have written to the answers, and tell what is new."""
    for output in outputs:
        for line in output.read_text().split("\n")[:-1]:
            if not line:
                continue
            answer = json.loads(line)
            number, kind = answer["number"], answer["kind"]
            # A crash of one worker alone counts; but it may not know that one device fails too.
            before = answers.get(number, {"kind": ""})["kind"]
            worse = ["", "ok", "design", "rounding", "known", "differs", "crashed", "invalid"]
            if worse.index(kind) > worse.index(before):
                answers[number] = answer
                _tell(lines[number], answer)


class Task:
    """Runs programs, in a process with TensorFlow.

    Args:
        options: Of the command.
        folder: With the file "programs"; the answers go to "output-0" and "output-1".
    """

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path):
        self.options = options
        self.folder = folder
        self.worker = 0
        self.logical = options.strategy != "parameter_server"

    def run(self, first: int, stop: int, servers: int) -> None:
        """Run the programs [first, stop)."""
        started = self._start(servers)
        from fit import programs

        names = {**vars(programs), "inf": float("inf")}
        lines = (self.folder / "programs").read_text().splitlines()
        self.parent = os.getppid()
        todo = [(i, eval(lines[i], names)) for i in range(first, stop)]  # noqa: S307 (our own)
        with (self.folder / f"output-{self.worker}").open("a") as self.output:
            if self.options.strategy == "multi_worker":
                self._in_pairs(todo)
            else:
                for number, program in todo:
                    self._write(number, self._answer(program, shrink=self.options.simplify))
        sys.stdout.flush()
        del started
        os._exit(0)  # servers would wait for ever

    def _start(self, servers: int) -> Any:
        """Make the strategy; return what has to live as long as it does."""
        kind, started = self.options.strategy, None
        if kind == "parameter_server":
            from cluster import servers as servers_lib

            started = servers_lib.start(2, servers)
        import tensorflow as tf

        import tfdp
        from tfdp import fit

        # Optimizing graphs that run a few steps takes longer than it saves.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        if kind == "mirrored":
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * 2
            )
            fit.enable()
            self.strategy = tf.distribute.MirroredStrategy(
                ["cpu:0", "cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
            )
        elif kind == "multi_worker":
            self.strategy = tfdp.strategy("multi_worker")
            self.worker = self.strategy.cluster_resolver.task_id
        else:
            # With two servers small variables are in partitions, too.
            pieces = {"min_partition_bytes": 64, "max_partitions": 3} if servers == 2 else {}
            self.strategy = tfdp.strategy("parameter_server", **pieces)
            fit.set_server_options(self.strategy, fit.ServerOptions(max_staleness=0))
        chief = "/job:chief/replica:0/task:0/device:CPU:0"
        device = chief if kind == "parameter_server" else "cpu:0"
        self.one_device = tf.distribute.OneDeviceStrategy(device)
        return started

    def _in_pairs(self, todo: list[tuple[int, Any]]) -> None:
        """Let each worker train one of two programs alone, at the same time, then both together."""
        for at in range(0, len(todo), 2):
            pair = todo[at : at + 2]
            alone = None
            if self.worker < len(pair):
                alone = self._alone(pair[self.worker][1])
            for i, (number, program) in enumerate(pair):
                outcome, error = _attempt(program, self.strategy)
                if i == self.worker or error:
                    right = alone if i == self.worker else ({}, "")
                    self._write(number, self._compared(program, right, (outcome, error)))
                if error:  # perhaps of one worker only: the other would wait
                    time.sleep(2.0)
                    os._exit(1)

    def _answer(self, program: Any, shrink: bool = False) -> dict[str, Any]:
        alone = self._alone(program)
        together = (None, "")
        if alone[0] is not None:
            together = _attempt(program, self.strategy)
        answer = self._compared(program, alone, together)
        if shrink and answer["kind"] in ("differs", "crashed"):
            smallest = self._simplified(program, answer["kind"])
            if smallest is not program:
                answer = {**self._answer(smallest), "simple": repr(smallest)}
        return answer

    def _simplified(self, program: Any, kind: str, most: int = 40) -> Any:
        """Return a program that fails as this one does, and has less in it."""
        from fit import programs

        tried = 0
        reduced = True
        while reduced:
            reduced = False
            for candidate in programs.simpler(program):
                tried += 1
                if tried > most:
                    return program
                self.output.write("\n")  # says that this process is alive
                self.output.flush()
                try:
                    fails = self._answer(candidate)["kind"] == kind
                except Exception:  # a combination that cannot be
                    continue
                if fails:
                    program, reduced = candidate, True
                    break
        return program

    def _alone(self, program: Any, nudge: int = 0) -> tuple[Any, str]:
        """Return what one device gives, or the error of stock Keras."""
        import tfdp

        if program.reference == "one_device":
            tfdp.enable()
            outcome, error = _attempt(program, self.one_device, nudge)
            if outcome is not None:
                return outcome, ""
            tfdp.disable()
            stock, _ = _attempt(program, None)
            tfdp.enable()
            return None, error if stock is None else f"tfdp's one device alone: {error}"
        tfdp.disable()
        try:
            return _attempt(program, None, nudge)
        finally:
            tfdp.enable()

    def _compared(
        self, program: Any, alone: tuple[Any, str], together: tuple[Any, str]
    ) -> dict[str, Any]:
        from fit import programs

        if alone[0] is None and alone[1]:
            kind = "crashed" if alone[1].startswith("tfdp's") else "invalid"
            return {"kind": kind, "error": alone[1]}
        if together[1] and programs.pending(program):
            return {"kind": "known", "error": programs.pending(program)}
        if together[1]:
            return {"kind": "crashed", "error": together[1]}
        batches = self.options.strategy == "mirrored"
        found = programs.compare(alone[0], together[0], program, batches=batches)
        if not found:
            return {"kind": "ok"}
        if reason := programs.may_differ(program, strategy=self.options.strategy):
            return {"kind": "design", "error": reason}
        if reason := programs.pending(program):
            return {"kind": "known", "error": reason}
        worst = max(found.values())
        if worst < _LARGEST_ROUNDING and worst <= 10 * self._moved_by_a_bit(program, alone[0]):
            return {"kind": "rounding", "found": found}
        return {"kind": "differs", "found": found}

    def _moved_by_a_bit(self, program: Any, outcome: Any) -> float:
        """Return how far one device's numbers move when its first weights change by one bit.

        A program that makes ten times more of that than of the order of a sum says nothing.
        """
        from fit import programs

        moved = [0.0]
        for nudge in (1, 2, 3):
            nudged = self._alone(program, nudge)[0]
            if nudged is not None:
                moved += programs.compare(outcome, nudged, program, limit=0.0).values()
        return max(one for one in moved if one < float("inf"))

    def _write(self, number: int, answer: dict[str, Any]) -> None:
        self.output.write(json.dumps({"number": number, **answer}) + "\n")
        self.output.flush()
        if os.getppid() != self.parent:  # who reads it was killed
            os._exit(1)


def _attempt(program: Any, strategy: Any, nudge: int = 0) -> tuple[Any, str]:
    """Return what a program gives, or the error."""
    import gc
    import traceback

    from fit import programs

    try:
        return programs.run(program, strategy, nudge), ""
    except Exception as error:
        where = traceback.format_exc().splitlines()
        ours = [line.strip() for line in where if "/tfdp/" in line][-3:]
        # TensorFlow puts what went wrong last, behind where.
        text = str(error)
        text = text if len(text) < 1000 else f"{text[:200]} ... {text[-800:]}"
        return None, "\n".join([f"{type(error).__name__}: {text}", *ours])
    finally:
        gc.collect()


if __name__ == "__main__":
    sys.exit(main())

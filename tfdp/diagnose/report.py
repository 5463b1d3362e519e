"""From what the tasks found out to a verdict. Pure.

report = make(cluster, {"worker:0": {...}, "worker:1": {...}})
print("\\n".join(report.lines()))
report.json()       # the same as data
report.exit_code    # 0, or 1 when something stands in the way
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tfdp.cluster import Cluster

_CLOCK_SECONDS = 2.0
_LEAST_DISK_GIGABYTES = 5.0
# A link that takes so many times as long as most is worth a word: all wait for it.
_SLOW_TIMES = 3.0
# What is told of a host where no task could be started.
_SHOWN = ("host", "python", "tensorflow", "keras", "tfdp")

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        level: "ok", "warning" or "problem": a problem ends or breaks a run.
        name: What was looked at, for programs.
        text: What was found, for people.
    """

    level: str
    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found out.

    Attributes:
        cluster: The cluster in words.
        tasks: Facts by task.
        checks: What was looked at, in order.
        all_reduce: What was timed: tasks, megabytes, seconds.
        slowest_link: The two tasks with the slowest all-reduce; None when none was timed.
    """

    cluster: str
    tasks: Mapping[str, Mapping[str, str]]
    checks: tuple[Check, ...]
    all_reduce: tuple[Mapping[str, Any], ...]
    slowest_link: tuple[str, str] | None

    @property
    def verdict(self) -> str:
        """The worst level of all checks: "ok", "warning" or "problem"."""
        levels = {check.level for check in self.checks}
        return next(level for level in (PROBLEM, WARNING, OK) if level in {*levels, OK})

    @property
    def exit_code(self) -> int:
        """1 when there is a problem, else 0."""
        return int(self.verdict == PROBLEM)

    def json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "verdict": self.verdict,
            "cluster": self.cluster,
            "tasks": {name: dict(facts) for name, facts in self.tasks.items()},
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "all_reduce": [dict(row) for row in self.all_reduce],
            "slowest_link": list(self.slowest_link) if self.slowest_link else None,
        }

    def lines(self) -> list[str]:
        """All of it in words; the verdict is the last line."""
        lines = [f"{self.cluster}:"]
        for name, facts in self.tasks.items():
            lines.append(f"  {name}: {_machine(facts)}")
        lines += [f"{check.level:8} {check.text}" for check in self.checks]
        if self.all_reduce:
            lines.append("All-reduce, median of 3:")
        for row in self.all_reduce:
            lines.append(
                f"  {' - '.join(row['tasks']) if len(row['tasks']) < 5 else 'all':24} "
                f"{row['megabytes']:3} MB  {row['seconds'] * 1e3:8.1f} ms  {row['by']}"
            )
        if self.slowest_link:
            lines.append(f"Slowest link: {' - '.join(self.slowest_link)}.")
        count = sum(check.level == self.verdict for check in self.checks)
        plural = "s" if count > 1 else ""
        lines.append(
            "Verdict: ready to train."
            if self.verdict == OK
            else f"Verdict: ready, with {count} warning{plural}."
            if self.verdict == WARNING
            else f"Verdict: not ready: {count} problem{plural}."
        )
        return lines


def make(cluster: Cluster, results: Mapping[str, Mapping[str, Any]]) -> Report:
    """Make the report.

    Args:
        cluster: Who was looked at.
        results: What each task's probe has written, by task; those without an answer left out.
    """
    names = [str(task) for task in cluster.tasks]
    tasks = {name: dict(results[name].get("facts", {})) for name in names if name in results}
    for result in results.values():
        for name, other in result.get("others", {}).items():
            if name not in tasks and other["facts"] is not None:
                tasks[name] = other["facts"]
    for facts in tasks.values():
        facts.pop("mark", None)
    rows = _rows(results)
    checks = [
        *_missing(names, tasks, results),
        *_ways(results),
        *_same(tasks),
        *_clocks(results),
        *_gpus(tasks, results),
        *_disk(tasks, results),
        *_links(rows),
        *(
            Check(PROBLEM, "tensorflow", f"{name}: {result['problem']}")
            for name, result in results.items()
            if result.get("problem")
        ),
    ]
    return Report(str(cluster), tasks, tuple(checks), tuple(rows), _slowest(rows))


def look(
    facts: Mapping[str, Mapping[str, Any]],
    problems: Sequence[str],
    has_mark: bool,
    is_copied: bool,
) -> list[Check]:
    """Say what was found out about hosts before any task was started there.

    Args:
        facts: What each host that answers says, by name; see launch.host_look.look.
        problems: What stands in the way of a run, a line for each.
        has_mark: Whether a file was written here for the hosts to see.
        is_copied: Whether the folder is copied to them before each run.
    """
    checks = [Check(PROBLEM, "hosts", line) for line in problems]
    if not problems:
        checks.append(Check(OK, "hosts", "Every host is reached, and has the same versions."))
    if is_copied or not has_mark or not facts:
        return checks
    alone = [name for name, found in facts.items() if not found["sees_mark"]]
    if alone:
        checks.append(
            Check(
                WARNING,
                "shared_folder",
                f"{_few(alone)} {'does' if len(alone) == 1 else 'do'} not see what this machine "
                f"wrote into the run's folder. Use a shared folder, or --sync.",
            )
        )
    else:
        checks.append(Check(OK, "shared_folder", "Every host sees what this machine writes."))
    return checks


def unreached(
    shape: object, facts: Mapping[str, Mapping[str, Any]], checks: Sequence[Check]
) -> Report:
    """Make the report where no task could be started; facts and checks are those of `look`."""
    hosts = {
        name: {
            **{key: _version(found[key]) for key in _SHOWN},
            "gpus": ", ".join(found["gpus"]),
        }
        for name, found in facts.items()
    }
    return Report(str(shape), hosts, tuple(checks), (), None)


def _version(text: str) -> str:
    return "none" if text.startswith("not installed") else text


def with_checks(report: Report, checks: Sequence[Check]) -> Report:
    """Return a report with more checks, which come first."""
    return dataclasses.replace(report, checks=(*checks, *report.checks))


def _machine(facts: Mapping[str, str]) -> str:
    gpus = facts.get("gpus") or "no GPU"
    parts = [facts.get("host", "?"), f"Python {facts.get('python')}"]
    parts += [f"TensorFlow {facts.get('tensorflow')}", f"Keras {facts.get('keras')}", gpus]
    parts += [f"{name} {facts[name]}" for name in ("driver", "nccl") if facts.get(name)]
    parts.append(f"{facts.get('free_disk_gigabytes', '?')} GB free")
    return ", ".join(parts)


def _missing(names: list[str], tasks: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
    for name in names:
        if name not in tasks:
            reasons = [r["others"][name]["reason"] for r in results.values() if "others" in r]
            why = next((reason for reason in reasons if reason), "its probe wrote nothing")
            yield Check(PROBLEM, "tasks", f"{name} does not answer: {why}.")


def _ways(results: Mapping[str, Any]) -> Any:
    seen, broken = 0, []
    for name, result in results.items():
        for other, found in result.get("others", {}).items():
            seen += 1
            if found["facts"] is None:  # said already
                broken.append("")
                continue
            if not found["is_reached"]:
                broken.append(f"{name} cannot reach {other}: {found['reason']}.")
            if not found["reaches_us"] and other not in results:
                broken.append(f"{other} cannot reach {name}.")
    for text in filter(None, broken):
        yield Check(PROBLEM, "ways", text + " Start it, and open its port to the others.")
    if seen and not broken:
        yield Check(OK, "ways", "Every task reaches every other, in both directions.")


def _same(tasks: Mapping[str, Mapping[str, str]]) -> Any:
    for key, level in (
        ("tensorflow", PROBLEM),
        ("keras", PROBLEM),
        ("tfdp", PROBLEM),
        ("python", WARNING),
        ("driver", WARNING),
        ("nccl", WARNING),
    ):
        found: dict[str, list[str]] = {}
        for name, facts in tasks.items():
            found.setdefault(facts.get(key, ""), []).append(name)
        if len(found) > 1:
            words = "; ".join(f"{value or 'none'} on {_few(who)}" for value, who in found.items())
            yield Check(level, key, f"The version of {key} differs: {words}. Install the same.")
        elif key == "tensorflow" and "" in found:
            yield Check(PROBLEM, key, "TensorFlow is not installed.")
    if len({tuple(f.get(k) for k in ("tensorflow", "keras", "tfdp")) for f in tasks.values()}) == 1:
        yield Check(OK, "versions", "TensorFlow, Keras and tfdp are the same everywhere.")


def _clocks(results: Mapping[str, Any]) -> Any:
    pairs = [
        (abs(other["clock_seconds"]), name, other_name)
        for name, result in results.items()
        for other_name, other in result.get("others", {}).items()
        if other["facts"] is not None
    ]
    if not pairs:
        return
    seconds, one, other = max(pairs)
    if seconds > _CLOCK_SECONDS:
        yield Check(
            WARNING,
            "clocks",
            f"The clocks of {one} and {other} are {seconds:.1f} s apart. Start NTP: logs and "
            f"checkpoints are ordered by time.",
        )
    else:
        yield Check(OK, "clocks", f"Clocks agree within {seconds:.2f} s.")


def _gpus(tasks: Mapping[str, Mapping[str, str]], results: Mapping[str, Any]) -> Any:
    counts: dict[int, list[str]] = {}
    for name, result in results.items():
        if "tensorflow_gpus" not in result:
            continue
        count = result["tensorflow_gpus"]
        if name.startswith(("chief", "worker")):
            counts.setdefault(count, []).append(name)
        if tasks[name].get("gpus") and not count:
            yield Check(
                WARNING,
                "gpus",
                f"{name} has {tasks[name]['gpus']}, but TensorFlow sees no GPU there. Look at "
                f"CUDA_VISIBLE_DEVICES and the driver ({tasks[name].get('driver') or 'none'}).",
            )
    if len(counts) > 1:
        words = "; ".join(f"{count} on {_few(who)}" for count, who in sorted(counts.items()))
        yield Check(PROBLEM, "gpus", f"The number of GPUs differs: {words}. Give all the same.")
    elif counts:
        (count,) = counts
        yield Check(OK, "gpus", f"TensorFlow sees {count or 'no'} GPU{'s' * (count > 1)} per task.")


def _disk(tasks: Mapping[str, Mapping[str, str]], results: Mapping[str, Any]) -> Any:
    is_good = True
    for name, result in results.items():
        if result.get("writes", True) is not True:
            is_good = False
            yield Check(
                PROBLEM, "disk", f"{name} cannot write to the run's folder: {result['writes']}."
            )
        free = float(tasks[name].get("free_disk_gigabytes", "inf"))
        if free < _LEAST_DISK_GIGABYTES:
            is_good = False
            yield Check(WARNING, "disk", f"{name} has only {free:g} GB of disk left.")
        if "shares_directory_with" in result:
            alone = sorted(set(result["others"]) - set(result["shares_directory_with"]))
            if alone:
                is_good = False
                yield Check(
                    WARNING,
                    "shared_directory",
                    f"{name} does not see in the run's folder what {_few(alone)} wrote there: "
                    f"checkpoints of the chief are not found by the others. Use a shared folder.",
                )
    if is_good and results:
        yield Check(OK, "disk", "The run's folder can be written, and there is room.")


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measurements, each once: the slowest of what its tasks have seen."""
    found: dict[tuple[tuple[str, ...], int, str], float] = {}
    for result in results.values():
        for row in result.get("all_reduce", []):
            key = (tuple(row["tasks"]), row["megabytes"], row["by"])
            found[key] = max(found.get(key, 0.0), row["seconds"])
    return [
        {"tasks": list(tasks), "megabytes": megabytes, "seconds": seconds, "by": by}
        for (tasks, megabytes, by), seconds in found.items()
    ]


def _pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    largest = max((row["megabytes"] for row in rows), default=0)
    return [
        row
        for row in rows
        if len(row["tasks"]) == 2 and row["megabytes"] == largest and row["by"] == "TensorFlow"
    ]


def _slowest(rows: list[dict[str, Any]]) -> tuple[str, str] | None:
    pairs = _pairs(rows)
    if not pairs:
        return None
    one, other = max(pairs, key=lambda row: row["seconds"])["tasks"]
    return one, other


def _links(rows: list[dict[str, Any]]) -> Any:
    pairs = _pairs(rows)
    if len(pairs) > 2:
        usual = statistics.median(row["seconds"] for row in pairs)
        worst = max(pairs, key=lambda row: row["seconds"])
        if worst["seconds"] > _SLOW_TIMES * usual:
            yield Check(
                WARNING,
                "links",
                f"The link {' - '.join(worst['tasks'])} takes {worst['seconds'] / usual:.1f} times "
                f"as long as most. Every step waits for it.",
            )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

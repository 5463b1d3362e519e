"""What differs between two tasks, in one line that names the setting, both values and both tasks.

    between("chief:0", {"call": "fit", "seed": "1"}, "worker:1", {"call": "fit", "seed": "2"})
    # 'seed differs: chief:0 has 1, worker:1 has 2. Every task has to train the same model with ...'

Pure text: what each task writes is a dictionary of texts and lists of texts, its "call" among them.
"""

import dataclasses
from typing import Any

# The last word of the name of what must differ between two tasks.
CACHE = "cache(filename)"
_REMEDY = "Every task has to train the same model with the same settings."
_REMEDIES = {
    "shard()": (
        "tfdp gives each worker its rows of batches that all of them read: leave out shard(), or "
        "let the dataset ask for tf.data's auto_shard_policy OFF, with as many batches everywhere."
    ),
    "callbacks": (
        "Give every task the same callbacks: all of them decide alike, and only the chief writes."
    ),
}


def plain(value: Any) -> Any:
    """Returns a value as JSON keeps it: text, or a list of texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = ", ".join(f"{name}={one!r}" for name, one in dataclasses.asdict(value).items())
    return [str(one) for one in value] if isinstance(value, list) else str(value)


def between(first: str, ours: Any, second: str, theirs: Any) -> str:
    """Say the first thing that differs between what two tasks wrote, "" if nothing does."""
    if ours["call"] != theirs["call"]:  # what belongs to another call cannot be compared
        ours, theirs = {"call": ours["call"]}, {"call": theirs["call"]}
    for name in {**ours, **theirs}:
        a, b = ours.get(name, "none"), theirs.get(name, "none")
        if name.endswith(CACHE):
            if shared := set(a) & set(b):
                return (
                    f"{name}: {first} and {second} write to one file, {shared.pop()}. Give each "
                    "worker its own, as in cache(f'{path}-{index}'), or cache() in memory."
                )
            continue
        if isinstance(a, list) and isinstance(b, list):
            problem = between_lists(name, first, a, second, b)
            if problem:
                return problem
        elif a != b:
            return _problem(name, first, a, second, b)
    return ""


def between_lists(name: str, first: str, ours: list, second: str, theirs: list) -> str:
    """Says where two lists differ. One that is the beginning of the other does not, unless done."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False), 1):
        # Names count up in the order of making: "dense_1" may be another's "dense".
        if a.split()[-1] != b.split()[-1]:
            return _problem(f"{name}: variable {number}", first, a, second, b)
    return ""


def _problem(name: str, first: str, a: Any, second: str, b: Any) -> str:
    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 300 else text[:297] + "..."

    remedy = next((text for end, text in _REMEDIES.items() if name.endswith(end)), _REMEDY)
    return f"{name} differs: {first} has {short(a)}, {second} has {short(b)}. {remedy}"

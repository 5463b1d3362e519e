"""The flags of a bench: --bench of `tfdp launch`, and --apply, which `tfdp bench` has too.

define(values, words)
environment = variables(settings(values, "runs/a"))
"""

import os
from collections.abc import Mapping

from absl import flags

from tfdp.bench import profile as profile_lib
from tfdp.bench import settings as settings_lib
from tfdp.error import Error
from tfdp.verbs import adder


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --bench and --apply.

    Args:
        values: The flags.
        words: The command line; --bench alone becomes --bench=end in it, and --nobench goes.
    """
    for i, word in enumerate(words):
        if word.lstrip("-") == "bench" and word.startswith("-"):
            words[i] = f"--bench={settings_lib.ENDS}"
    text = "Measure the first fit before it begins, and end; --bench=continue trains afterwards."
    adder(values)(flags.DEFINE_string, "bench", "", text)
    define_apply(values)
    define_profile(values)


def define_apply(values: flags.FlagValues) -> None:
    """Define --apply."""
    text = "Try the best remedy for some steps: predicted gain beside measured."
    adder(values)(flags.DEFINE_bool, "apply", False, text)


def define_profile(values: flags.FlagValues) -> None:
    """Define --profile."""
    text = "Trace steps of each worker, and one timeline of all: steps:10-20."
    adder(values)(flags.DEFINE_string, "profile", "", text)


def profile(values: flags.FlagValues, folder: str) -> Mapping[str, str]:
    """Return what every task finds in its environment where steps are to be traced.

    Args:
        values: The flags.
        folder: Of the run.

    Raises:
        Error: For steps that cannot be traced.
    """
    if not values["profile"].present:
        return {}
    if values.ps:
        raise Error(
            f"--profile: with --ps={values.ps} workers take their steps each by itself, and have "
            "no common timeline. Leave one of them out."
        )
    found = profile_lib.parse(values.profile, os.path.abspath(folder))
    return {profile_lib.VARIABLE: found.to_text()}


def settings(values: flags.FlagValues, folder: str) -> settings_lib.Settings | None:
    """Return what is asked for; None without --bench.

    Args:
        values: The flags.
        folder: Of bench.json.

    Raises:
        Error: For flags that do not go together.
    """
    if not values.bench:
        if values.apply:
            raise Error("--apply tries what a bench has found: add --bench.")
        return None
    refuse_servers(values)
    return settings_lib.Settings(os.path.abspath(folder), values.bench, values.apply)


def refuse_servers(values: flags.FlagValues) -> None:
    """Refuse clusters whose training is not measured.

    Raises:
        Error: With what is.
    """
    if values.ps:
        raise Error(
            f"--ps={values.ps}: the bench measures replicas that are kept in sync; workers of "
            "parameter servers take their steps each by itself. Leave out --chief and --ps."
        )
    if values.evaluator:
        raise Error(
            "--evaluator waits for checkpoints, which a bench does not write. Leave it out."
        )
    if values.max_restarts or values.min_workers:
        flag = "--max_restarts" if values.max_restarts else "--min_workers"
        raise Error(f"{flag}: a bench is not started again. Leave it out.")


def variables(settings: settings_lib.Settings | None) -> Mapping[str, str]:
    """Return what every task finds in its environment."""
    return {} if settings is None else {settings_lib.VARIABLE: settings.to_text()}

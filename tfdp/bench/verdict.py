"""From the five measured runs to one verdict, with what to do and what it gains. Pure numbers.

    times = Times(real=0.080, kept=0.020, alone=(0.020,), input=(0.079,), batch=32)
    found = judge(times)
    found.verdict, found.text       # "input", "input-bound: the input gives 400 of the 1,600 ..."
    remedies(found, times, Tried(cached_input=0.001))

The differences say where a step's time goes (they hold on CPUs too, where input and training share
the cores):

    input               E5 - E3     the real loop, less steps on a batch that is kept
    synchronisation     E3 - E2     these, less steps of the slowest worker without the exchange
    straggler           the slowest worker's E2, less that of the median worker
    training            the median worker's E2

Thresholds and words are those of TensorFlow's profiler: up to 5% of a step is not a problem, up to
20% a moderate one. The verdict is the largest share, with one exception: a worker that is 20%
slower than the median one is named unless input or synchronisation cost more, as its own slowness
fills the share of training too.
"""

import dataclasses
import statistics

from tfdp.bench import words

NOT, MODERATELY = 0.05, 0.20
# A worker is a straggler from there on: slowest / median.
STRAGGLES = 1.2
# The real loop may take so much longer than its slower half alone, before it is said that input and
# training take each other's cores.
_SHARES_CORES = 1.1
# Less is not worth a change.
_LEAST_GAIN = 1.02


@dataclasses.dataclass(frozen=True)
class Times:
    """The medians of the five runs, in seconds a step.

    Attributes:
        real: The real loop (E5).
        kept: Steps on a batch that is kept (E3).
        alone: Each worker's, without the exchange (E2).
        input: Each worker's batches, read and nothing else (E1).
        exchange: The exchange of the gradients alone (E4); 0 with one replica.
        half_alone: Without the exchange on `half_batch` rows, the slowest worker's; 0: unknown.
        batch: Rows of a step.
        half_batch: Rows of the smaller step.
        workers: Their names, in the order of `alone`.
        gradient_bytes: What each replica gives away in a step.
        data_wait: The share of the real loop that this process waited for batches.
        cores: CPUs of a worker: its pipeline may keep all of them busy.
    """

    real: float
    kept: float
    alone: tuple[float, ...]
    input: tuple[float, ...]
    batch: int
    exchange: float = 0.0
    half_alone: float = 0.0
    half_batch: int = 0
    workers: tuple[str, ...] = ("",)
    gradient_bytes: int = 0
    data_wait: float = 0.0
    cores: int = 1

    @property
    def slowest(self) -> float:
        """The slowest worker's step, without the exchange."""
        return max(self.alone)

    @property
    def typical(self) -> float:
        """The median worker's; of two the faster one's."""
        return statistics.median_low(self.alone)

    @property
    def exposed(self) -> float:
        """The part of the exchange that a step waits for.

        The real loop cannot take less than steps on a batch that is kept; where it was measured so,
        the shorter one counts, and what is left without the exchange is the slowest worker's step.
        """
        return max(0.0, min(self.kept, self.real) - self.slowest) if self.exchange else 0.0

    @property
    def waiting(self) -> float:
        """What the real input adds to a step: at most its own work on all cores.

        Where the difference is larger the machine was busy with other things.
        """
        return min(max(0.0, self.real - self.kept), self.cores * max(self.input))


@dataclasses.dataclass(frozen=True)
class Tried:
    """What was measured of remedies: parts of a step, in seconds; 0 where it was not.

    Attributes:
        cached_input: A batch of the pipeline after `cache()` (E1).
        parallel_input: A batch of the pipeline with parallel maps and prefetching (E1).
        bfloat16_exchange, float16_exchange: The exchange in that type (E4).
        jit_alone: A step without the exchange, compiled by XLA (E2).
        many_kept: A step on a kept batch where 20 run in one execution (E3).
    """

    cached_input: float = 0.0
    parallel_input: float = 0.0
    bfloat16_exchange: float = 0.0
    float16_exchange: float = 0.0
    jit_alone: float = 0.0
    many_kept: float = 0.0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict.

    Attributes:
        verdict: "input", "training", "synchronisation" or "straggler".
        text: The same in a sentence.
        shares: The share of each in a step.
        notes: What else is to be known.
    """

    verdict: str
    text: str
    shares: dict[str, float]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """One remedy: see record.Remedy; `about` is the verdict that it is for."""

    about: str
    name: str
    text: str
    gain: float
    seconds_per_step: float = 0.0


def judge(times: Times) -> Judgement:
    """Return the verdict on a training."""
    parts = {
        "input": times.waiting,
        "training": times.typical,
        "synchronisation": times.exposed,
        "straggler": times.slowest - times.typical,
    }
    total = sum(parts.values())
    shares = {name: part / total for name, part in parts.items()}
    verdict = _largest(shares, times.slowest / times.typical)
    return Judgement(verdict, _TEXTS[verdict](times, shares), shares, tuple(_notes(times)))


def degree(share: float) -> str:
    """Return "not", "moderately" or "highly", as TensorFlow's profiler says it of the input."""
    return "not" if share < NOT else "moderately" if share <= MODERATELY else "highly"


def _largest(shares: dict[str, float], slowness: float) -> str:
    others = {name: share for name, share in shares.items() if name != "training"}
    worst = max(others, key=lambda name: others[name])
    if others[worst] <= NOT:
        return "training"
    if worst == "straggler" and slowness >= STRAGGLES:
        return worst
    return max(shares, key=lambda name: shares[name])


def _input_text(times: Times, shares: dict[str, float]) -> str:
    text = (
        f"input-bound: the input gives {times.batch / times.real:,.0f} of the "
        f"{times.batch / times.kept:,.0f} examples/s that training could take "
        f"({degree(shares['input'])} input-bound: {shares['input']:.0%} of a step is a wait for "
        "its batch)"
    )
    slow = max(times.input)
    if len(times.input) > 1 and slow >= STRAGGLES * statistics.median_low(times.input):
        text += f"; {times.workers[times.input.index(slow)]} reads slowest"
    return text + "."


def _training_text(times: Times, shares: dict[str, float]) -> str:
    rest = [
        f"{name} {share:.0%}"
        for name, share in sorted(shares.items(), key=lambda one: -one[1])
        if name != "training" and share > NOT
    ]
    text = (
        f"training: the devices compute for {shares['training']:.0%} of a step, and take "
        f"{times.batch / times.real:,.0f} examples/s"
    )
    if rest:
        return f"{text}; beside that {', '.join(rest)}."
    return text + "; neither input nor synchronisation costs more than 5%."


def _synchronisation_text(times: Times, shares: dict[str, float]) -> str:
    overlap = max(0.0, 1 - times.exposed / times.exchange) if times.exchange else 0.0
    return (
        f"synchronisation-bound: {words.time(times.exposed)} of a step's "
        f"{words.time(times.real)} pass in the exchange of "
        f"{words.size(times.gradient_bytes)} of gradients ({shares['synchronisation']:.0%}; "
        f"{overlap:.0%} of the exchange is hidden behind computing). Without it training "
        f"would take {times.batch / (times.real - times.exposed):,.0f} in place of "
        f"{times.batch / times.real:,.0f} examples/s."
    )


def _straggler_text(times: Times, shares: dict[str, float]) -> str:
    slowest = times.alone.index(times.slowest)
    return (
        f"straggler: {times.workers[slowest]} takes {words.time(times.slowest)} for its part of "
        f"a step, {times.slowest / times.typical:.1f} times the {words.time(times.typical)} of "
        f"the median worker, and all others wait for it ({shares['straggler']:.0%} of a step)."
    )


_TEXTS = {
    "input": _input_text,
    "training": _training_text,
    "synchronisation": _synchronisation_text,
    "straggler": _straggler_text,
}


def shares_cores(times: Times) -> bool:
    """Say whether input and training take each other's cores."""
    both = times.kept + times.waiting
    return both > _SHARES_CORES * max(*times.input, times.kept)


def _notes(times: Times) -> list[str]:
    notes = []
    if shares_cores(times):
        slower = max(*times.input, times.kept)
        notes.append(
            f"The real loop takes {times.real / slower:.2f} times as long as the slower one of "
            "input and training alone: they share the same cores. Decode on other machines or in "
            "other processes (docs/data-service.md), or do less of it (cache)."
        )
    return notes


def remedies(found: Judgement, times: Times, tried: Tried) -> list[Proposal]:
    """Return what to do; nothing that gains less than 2%.

    For the verdict first; what changes the numbers that are trained last; then by gain.
    """
    every = [
        *_for_input(times, tried),
        *_for_synchronisation(times, tried),
        *_for_straggler(times),
        *_for_training(times, tried),
    ]
    worth = [one for one in every if one.gain >= _LEAST_GAIN]
    return sorted(
        worth, key=lambda one: (one.about != found.verdict, one.name == "larger_batch", -one.gain)
    )


def with_input(times: Times, seconds: float) -> float:
    """Return the seconds of a real step whose input alone takes `seconds` a batch."""
    least = max(seconds, times.kept)
    if not shares_cores(times):
        return least
    # Each second of input costs the same share of a second of training as it does now.
    return max(least, times.kept + times.waiting * min(1.0, seconds / max(times.input)))


def with_exchange(times: Times, seconds: float) -> float:
    """Return the seconds of a real step whose exchange alone takes `seconds`."""
    return times.real - times.exposed * (1 - min(1.0, seconds / times.exchange))


def with_batch(times: Times, factor: float) -> float:
    """Return the seconds of a real step with a batch that is `factor` times as large.

    Computing takes a + b * batch, fitted to the whole batch and the half of it; input grows with
    the batch, and the exchange does not.
    """
    per_row = (times.slowest - times.half_alone) / (times.batch - times.half_batch)
    per_row = min(max(0.0, per_row), times.slowest / times.batch)
    computing = times.slowest + per_row * times.batch * (factor - 1)
    return computing + times.exposed + factor * times.waiting


def _for_input(times: Times, tried: Tried) -> list[Proposal]:
    found = []
    if tried.parallel_input:
        seconds = with_input(times, tried.parallel_input)
        text = (
            "Let the maps of the pipeline run in parallel and ahead of the steps: "
            "map(..., num_parallel_calls=tf.data.AUTOTUNE) and prefetch(tf.data.AUTOTUNE) at its "
            "end."
        )
        found.append(Proposal("input", "parallel_input", text, times.real / seconds, seconds))
    if tried.cached_input:
        seconds = with_input(times, tried.cached_input)
        text = (
            "Cache what is decoded: put cache() behind the costly maps and before shuffle and what "
            "draws random numbers, if it fits in memory; cache(FILE) if it does not."
        )
        found.append(Proposal("input", "cache", text, times.real / seconds, seconds))
    return found


def _for_synchronisation(times: Times, tried: Tried) -> list[Proposal]:
    found = []
    for kind, seconds in (
        ("float16", tried.float16_exchange),
        ("bfloat16", tried.bfloat16_exchange),
    ):
        if seconds and times.exchange:
            step = with_exchange(times, seconds)
            text = (
                f"Send gradients in {kind}: tfdp.Communication(compression={kind!r}), or "
                f"--config.communication.compression={kind}."
            )
            found.append(Proposal("synchronisation", f"{kind}_wire", text, times.real / step, step))
    if times.half_alone and times.exposed > NOT * times.real:
        found.append(_larger_batch("synchronisation", times))
    return found


def _for_straggler(times: Times) -> list[Proposal]:
    if times.slowest < STRAGGLES * times.typical:
        return []
    name = times.workers[times.alone.index(times.slowest)]
    seconds = times.real - (times.slowest - times.typical)
    text = (
        f"Look at what else runs on the machine of {name}, at its clock and its number of cores; "
        "replace it, or leave it out. The gain is that of a worker as fast as the median one."
    )
    return [Proposal("straggler", "replace_worker", text, times.real / seconds, seconds)]


def _for_training(times: Times, tried: Tried) -> list[Proposal]:
    found = []
    if tried.jit_alone:
        seconds = times.real - times.slowest + tried.jit_alone
        text = "Compile the steps with XLA: model.compile(jit_compile=True)."
        found.append(Proposal("training", "jit_compile", text, times.real / seconds, seconds))
    if tried.many_kept:
        seconds = times.real - times.kept + min(times.kept, tried.many_kept)
        text = (
            "Run several steps in one execution: model.compile(steps_per_execution=20); callbacks "
            "then hear of every 20th step."
        )
        gain = times.real / seconds
        found.append(Proposal("training", "steps_per_execution", text, gain, seconds))
    if times.half_alone and times.exposed <= NOT * times.real:
        found.append(_larger_batch("training", times))
    return found


def _larger_batch(about: str, times: Times) -> Proposal:
    factor = 2.0
    gain = factor * times.real / with_batch(times, factor)
    text = (
        f"Double the global batch, to {factor * times.batch:,.0f} rows, if it fits in memory: what "
        "a step costs beside its rows is paid half as often. It changes the training: scale the "
        "learning rate with it."
    )
    return Proposal(about, "larger_batch", text, gain)

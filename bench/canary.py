"""How often the judge of a gradual rollback is wrong, and what it finds, beside two judges as others have them.

All judges see the same streams: bakes of 15 minutes, both versions answering equally often, a look a minute. The seed
is fixed. What is counted is whether the bake was ended as 'worse' at any minute.

- *threshold*: more than 1 % errors in the minute, twice in a row.
- *rank, at the end*: Mann-Whitney over the ratios of the minutes at 98 % confidence, in the manner of Kayenta, once.
- *rank, each minute*: the same, asked every minute, twice in a row.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist, median

from activities.version_counts import VersionCounts
from workflows.canary_judge import Decision, Judgement, Limits, Look, judge, settle

MINUTES = 15
SIZES = (50, 500, 5000)
RATES = (0.01, 0.05, 0.25)
IDENTICAL, DIFFERENT = 200, 60
"""Bakes simulated for each cell of false alarms, and of detection."""

LIMITS = Limits()
Bake = Sequence[Look]
Alarm = Callable[[Bake], bool]


def counts(chance: random.Random, version: str, invocations: int, error_rate: float) -> VersionCounts:
    errors = 0
    if error_rate:  # from error to error by the gaps between them, which is quicker than request by request
        at = gap(chance, error_rate)
        while at < invocations:
            errors += 1
            at += 1 + gap(chance, error_rate)
    return VersionCounts(version=version, invocations=invocations, errors=errors)


def gap(chance: random.Random, error_rate: float) -> int:
    """Good requests before the next failed one."""
    return int(math.log(1 - chance.random()) / math.log(1 - error_rate))


def bake(chance: random.Random, size: int, restored: Sequence[float], replaced: float) -> Bake:
    """``size`` requests to each version, spread over the minutes; ``restored`` is the error rate at each."""
    arrivals = [Counter(chance.choices(range(MINUTES), k=size)) for _ in range(2)]
    return [
        Look(
            restored=counts(chance, "7", arrivals[0][minute], restored[minute]),
            replaced=counts(chance, "8", arrivals[1][minute], replaced),
        )
        for minute in range(MINUTES)
    ]


def swapped(looks: Bake) -> Bake:
    return [Look(restored=look.replaced, replaced=look.restored) for look in looks]


def decided(looks: Bake, *, proof: bool = True) -> tuple[Decision, int]:
    """How this project's judge ends a bake, and after how many looks."""
    judgements: list[Judgement] = []
    decision = Decision.WAIT
    for number in range(1, len(looks) + 1):
        judgements.append(judge(looks[:number], LIMITS))
        decision = settle(judgements, LIMITS, proof=proof)
        if decision in (Decision.WORSE, Decision.NOT_THE_DEPLOY):
            return decision, number
    return decision, len(looks)


def over_threshold(looks: Bake) -> bool:
    rate = looks[-1].restored.error_rate if looks[-1].restored else None
    return rate is not None and rate > 0.01


def ranked_higher(looks: Bake) -> bool:
    """Whether the minutes of the version brought back rank higher, by the normal approximation with ties corrected."""
    first = [look.restored.error_rate for look in looks if look.restored and look.restored.error_rate is not None]
    second = [look.replaced.error_rate for look in looks if look.replaced and look.replaced.error_rate is not None]
    n1, n2 = len(first), len(second)
    if not n1 or not n2:
        return False
    u = sum((x > y) + (x == y) / 2 for x in first for y in second)
    ties = sum(count**3 - count for count in Counter([*first, *second]).values())
    n = n1 + n2
    variance = n1 * n2 / 12 * (n + 1 - ties / (n * (n - 1)))
    if variance <= 0:
        return False
    z = (u - n1 * n2 / 2 - 0.5) / math.sqrt(variance)
    return 2 * (1 - NormalDist().cdf(z)) < 0.02


def first_alarm(alarm: Alarm, looks: Bake, in_a_row: int = 1) -> int | None:
    """The look at which a judge that is asked every minute gives its alarm."""
    run = 0
    for number in range(1, len(looks) + 1):
        run = run + 1 if alarm(looks[:number]) else 0
        if run == in_a_row:
            return number
    return None


def shares(counts: Sequence[int], total: int) -> str:
    return "".join(f"{count / total:>16.1%}" for count in counts)


def others(bakes: Sequence[Bake]) -> list[int]:
    """How many bakes each of the other judges ends as worse."""
    return [
        sum(first_alarm(over_threshold, looks, 2) is not None for looks in bakes),
        sum(ranked_higher(looks) for looks in bakes),
        sum(first_alarm(ranked_higher, looks, 2) is not None for looks in bakes),
    ]


def endings(bakes: Sequence[Bake]) -> Counter[Decision]:
    return Counter(decided(looks)[0] for looks in bakes)


def header(what: str, columns: Sequence[str]) -> None:
    print(f"{what:<32}{'requests':>8}" + "".join(f"{name:>16}" for name in columns))


def row(what: str, size: int, rest: str) -> None:
    print(f"{what:<32}{size:>8}{rest}")


def verdicts(chance: random.Random) -> None:
    judges = ("threshold", "rank, at end", "rank, always")
    recovery: list[tuple[str, int, Counter[Decision]]] = []

    print(
        f"\nfalse alarms: identical versions called worse ({IDENTICAL} bakes each; stated: at most {LIMITS.alpha:.0%})"
    )
    header("errors of both", ("this judge", *judges))
    for rate in RATES:
        for size in SIZES:
            bakes = [bake(chance, size, [rate] * MINUTES, rate) for _ in range(IDENTICAL)]
            ends = endings(bakes)
            row(f"{rate:.0%}", size, shares([ends[Decision.WORSE], *others(bakes)], IDENTICAL))
            recovery.append((f"{rate:.0%} -> {rate:.0%}", size, ends))

    print(f"\ndetection: the version brought back is worse ({DIFFERENT} bakes each; stopped: worse or not the deploy)")
    header("errors of it against the other", ("this: worse", "this: stopped", *judges))
    for rate in RATES:
        for other in (0.0, rate / 2):
            for size in SIZES:
                bakes = [bake(chance, size, [rate] * MINUTES, other) for _ in range(DIFFERENT)]
                ends = endings(bakes)
                worse = ends[Decision.WORSE]
                stopped = worse + ends[Decision.NOT_THE_DEPLOY]
                row(f"{rate:.0%} against {other:.1%}", size, shares([worse, stopped, *others(bakes)], DIFFERENT))
                recovery.append((f"{rate:.0%} -> {other:.1%}", size, endings([swapped(each) for each in bakes])))

    print("\nrecovery, which the other judges do not ask for: how this one ends the last bake before 100 %")
    header("errors before -> brought back", ("go on", "not the deploy", "wait, then ask", "worse"))
    order = (Decision.GO_ON, Decision.NOT_THE_DEPLOY, Decision.WAIT, Decision.WORSE)
    for what, size, ends in recovery:
        row(what, size, shares([ends[end] for end in order], ends.total()))


def breaks_midway(chance: random.Random) -> None:
    """The version brought back is better for 7 minutes, then breaks."""
    print("\nit breaks in the 8th minute: from 1 % to 30 % errors, the other at 5 %")
    header("judge", ("sent back after", "in bakes"))
    for size in SIZES[1:]:
        bakes = [bake(chance, size, [0.01] * 7 + [0.30] * 8, 0.05) for _ in range(DIFFERENT)]
        ours = [number - 7 for end, number in (decided(looks) for looks in bakes) if end is Decision.WORSE]
        ranked = [number - 7 for looks in bakes if (number := first_alarm(ranked_higher, looks, 2))]
        for name, found in (("this judge", ours), ("rank, always", ranked)):
            after = f"{median(found):.0f} min" if found else "never"
            row(name, size, f"{after:>15}{len(found) / len(bakes):>16.1%}")


def cost(chance: random.Random) -> None:
    print("\ntime of one judgement, with latencies of 1,000 requests a look and version")
    for looks in (1, 15, 60):
        durations = [chance.lognormvariate(math.log(80), 0.5) for _ in range(1000)]
        side = VersionCounts.of("7", invocations=1000, errors=10, durations_ms=durations)
        seen = [Look(restored=side, replaced=side)] * looks
        started = time.perf_counter()
        for _ in range(5):
            judge(seen, LIMITS)
        print(f"{looks:>4} looks: {(time.perf_counter() - started) / 5 * 1000:6.2f} ms")


def main() -> None:
    """Print the tables; about half a minute."""
    chance = random.Random(20240229)
    print(f"judge of a gradual rollback: {MINUTES}-minute bakes; requests are of each version over the bake")
    verdicts(chance)
    breaks_midway(chance)
    cost(chance)


if __name__ == "__main__":
    main()

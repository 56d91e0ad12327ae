"""Whether a candidate fails more often, or is slower, than what is deployed. Pure.

Failures: Fisher's exact test, one-sided (Fisher, 1922), which holds for few requests as well.
Pace: the Mann-Whitney test (Mann and Whitney, 1947; normal approximation with the correction for ties), one-sided, of whether
the candidate is slower by more than `SLOWER`: rank tests need no shape of the distribution, which has long tails, and on a
logarithmic scale a factor is a shift by buckets.

Looking again and again would find something sooner or later. So it is looked at only each time the candidate has answered a
quarter more requests, and look k may be wrong with probability `ALPHA / (k (k + 1))`: over all looks, forever, that sums to
`ALPHA` (the union bound), for each test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.005
"""Chance that a candidate that is not worse is taken back, for each test and share."""
MIN_REQUESTS = 20
"""Of each revision, before anything is concluded."""
GROWTH = 1.25
BUCKETS = 96
"""Of a pace, four to a doubling, from 1/64 ms on."""
SLOWER_BUCKETS = 2
SLOWER = 2 ** (SLOWER_BUCKETS / 4)
"""A candidate may be slower by that factor; what is measured of two equal revisions differs, too, by load and placement."""


@dataclass(frozen=True)
class Counts:
    """Requests that came to their end, the failed ones among them, and the pace of the others by bucket."""

    requests: int = 0
    errors: int = 0
    pace: tuple[int, ...] = ()

    def __add__(self, other: "Counts") -> "Counts":
        longer, shorter = sorted((self.pace, other.pace), key=len, reverse=True)
        padded = (*shorter, *(0 for _ in range(len(longer) - len(shorter))))
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            tuple(a + b for a, b in zip(longer, padded, strict=True)),
        )


def bucket_of(milliseconds: float) -> int:
    """The bucket of a pace in milliseconds."""
    return min(BUCKETS - 1, max(0, math.floor(4 * math.log2(max(milliseconds, 1e-9) * 64))))


def milliseconds_of(bucket: float) -> float:
    """The middle of a bucket, in milliseconds."""
    return float(2 ** ((bucket + 0.5) / 4) / 64)


def look_of(requests: int) -> int:
    """The number of the look that is due at so many requests of the candidate, from 1; 0: none yet."""
    if requests < MIN_REQUESTS:
        return 0
    return 1 + math.floor(math.log(requests / MIN_REQUESTS) / math.log(GROWTH) + 1e-9)


def worse(candidate: Counts, deployed: Counts, look: int) -> str:
    """Why the candidate is worse, in words with the numbers; empty when that is not shown at this look (from 1)."""
    if look < 1 or candidate.requests < MIN_REQUESTS or deployed.requests < MIN_REQUESTS:
        return ""
    alpha = ALPHA / (look * (look + 1))
    p = fisher(candidate.errors, candidate.requests, deployed.errors, deployed.requests)
    if p < alpha:
        return (
            f"{candidate.errors} of {candidate.requests} requests failed, of the deployed revision "
            f"{deployed.errors} of {deployed.requests} (p = {p:.1e})"
        )
    if sum(candidate.pace) < MIN_REQUESTS or sum(deployed.pace) < MIN_REQUESTS:
        return ""
    p = mann_whitney(candidate.pace, deployed.pace, SLOWER_BUCKETS)
    if p < alpha:
        own, other = (milliseconds_of(median(each)) for each in (candidate.pace, deployed.pace))
        return f"{own:.3g} ms a token, the deployed revision takes {other:.3g} (medians; p = {p:.1e})"
    return ""


def fisher(errors: int, requests: int, other_errors: int, other_requests: int) -> float:
    """Probability of at least so many errors among `requests`, if both had the same chance of failing."""
    total, failed = requests + other_requests, errors + other_errors
    most = min(failed, requests)

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = log_choose(total, failed)
    found = 0.0
    for count in range(errors, most + 1):
        if failed - count > other_requests:
            continue
        term = math.exp(log_choose(requests, count) + log_choose(other_requests, failed - count) - whole)
        found += term
        if count * total > failed * requests and term < found * 1e-12:
            break  # past the middle terms only fall
    return min(1.0, found)


def mann_whitney(candidate: Sequence[int], deployed: Sequence[int], shift: int = 0) -> float:
    """Probability of values so much greater than the deployed revision's, raised by `shift` buckets, if both were alike.

    Both are counts by bucket.
    """
    length = max(len(candidate), len(deployed) + shift)
    one = [*candidate, *(0 for _ in range(length - len(candidate)))]
    other = [*(0 for _ in range(shift)), *deployed]
    other += [0] * (length - len(other))
    n, m = sum(one), sum(other)
    if not n or not m:
        return 1.0
    below, u, ties = 0, 0.0, 0.0
    for a, b in zip(one, other, strict=True):
        u += a * (below + b / 2)
        below += b
        ties += (a + b) ** 3 - (a + b)
    total = n + m
    variance = n * m / 12 * ((total + 1) - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = (u - n * m / 2 - 0.5) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2))


def median(pace: Sequence[int]) -> int:
    """The bucket in which the median lies."""
    half, seen = sum(pace) / 2, 0
    for bucket, count in enumerate(pace):
        seen += count
        if seen >= half and count:
            return bucket
    return 0

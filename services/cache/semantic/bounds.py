"""How large a rate may be, after what was seen of it, at every moment at once. Pure.

The evidence is looked at after every sample, and a hit is served as soon as the bound allows it. An interval made for one
look (Clopper-Pearson) is wrong more often than it says when it is looked at until it pleases. These are confidence
sequences: with probability `confidence` they hold at all times together (Robbins 1970, "Statistical methods related
to the law of the iterated logarithm"; the mixture here is beta-binomial). By Ville's inequality the true rate p leaves

    { p : B(a + k, b + n - k) / B(a, b)  <  p^k (1 - p)^(n - k) / (1 - confidence) }

with probability 1 - confidence at most, for any a and b that do not depend on the samples.
"""

import math

_STEPS = 60


def upper(samples: int, wrong: int, *, confidence: float, around: float = 0.01) -> float:
    """The largest rate that `wrong` of `samples` still allow; 1 without samples.

    `around` is the rate near which the bound is to be sharpest; it must not be chosen by looking at the samples.
    Where none is wrong and 1 % is asked for at 95 %, about 410 samples are needed; for one look it would be 299.
    """
    return _edge(samples, wrong, confidence, 0.5, 0.5 / around, up=True)


def interval(samples: int, wrong: int, *, confidence: float) -> tuple[float, float]:
    """The rates that `wrong` of `samples` allow; 0..1 without samples."""
    low = _edge(samples, wrong, confidence, 0.5, 0.5, up=False)
    return low, _edge(samples, wrong, confidence, 0.5, 0.5, up=True)


def _edge(samples: int, wrong: int, confidence: float, a: float, b: float, *, up: bool) -> float:
    if not 0 <= wrong <= samples:
        raise ValueError(f"{wrong} wrong of {samples}")
    if not samples:
        return 1.0 if up else 0.0
    mixture = _log_beta(a + wrong, b + samples - wrong) - _log_beta(a, b)
    limit = -math.log(1.0 - confidence)

    def allowed(rate: float) -> bool:
        return mixture - _log_power(rate, wrong) - _log_power(1.0 - rate, samples - wrong) < limit

    likeliest = wrong / samples
    inside, outside = likeliest, 1.0 if up else 0.0
    if allowed(outside):
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if allowed(middle):
            inside = middle
        else:
            outside = middle
    return outside


def _log_power(base: float, exponent: int) -> float:
    if not exponent:
        return 0.0
    return exponent * math.log(base) if base > 0.0 else -math.inf


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

"""What concurrent streams' token times say: their rate, and how long they stalled. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Stream:
    """One generation as its client saw it: token ids, and when each came, in seconds of one clock."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], now: float) -> None:
        """Token ids that came at `now`."""
        self.tokens.extend(token_ids)
        self.times.extend([now] * len(token_ids))


def decode_rate(streams: Sequence[Stream]) -> float:
    """Tokens per second of all streams together, while all of them decode.

    Counted from when the last stream has its first token until the first stream has its last one.

    Raises:
        ValueError: there is no such time.
    """
    begin = max(one.times[0] for one in streams)
    end = min(one.times[-1] for one in streams)
    count = sum(begin < at <= end for one in streams for at in one.times)
    if count == 0:
        raise ValueError("the streams never decoded at the same time: generate more tokens")
    return count / (end - begin)


def stall(streams: Sequence[Stream], sent: float, answered: float) -> tuple[float, float]:
    """Seconds between tokens: the median before something was sent, and the 99th percentile until its answer.

    Before: gaps that began when every stream had a token, and ended by `sent`. During: gaps that overlap
    `sent` to `answered`.

    Raises:
        ValueError: there are no gaps before or during.
    """
    settled = max(one.times[0] for one in streams)
    gaps = [gap for one in streams for gap in zip(one.times, one.times[1:], strict=False)]
    before = [end - begin for begin, end in gaps if begin >= settled and end <= sent]
    during = [end - begin for begin, end in gaps if end > sent and begin < answered]
    if not before or not during:
        raise ValueError("no tokens before, or none during: let the streams run longer")
    return float(np.median(before)), float(np.percentile(during, 99))

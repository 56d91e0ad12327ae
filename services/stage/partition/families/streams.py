"""Several residual streams per token (hyper-connections): DeepSeek V4, HY V4."""

from .plain import Family


class Streams(Family):
    """Hidden states `[tokens, streams, hidden]`, merged into one after the last layer."""

    after = ("hc_head",)

    def row_shape(self) -> tuple[int, ...]:
        """`streams, hidden`."""
        return self.text.hc_mult, self.text.hidden_size

"""The keys and values of sessions, within a budget that is reserved before anything runs."""

import torch

from stagemesh.errors import ResourceExhausted


class SessionKV:
    """Keys and values of one session on one partition.

    One pair of tensors per layer, `[kv_heads, capacity, head_dim]`, allocated at the first write; `length` is
    the number of positions written so far by every layer of the last pass.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        # The model library's own cache instead, on the path for architectures that need it.
        self.own: object | None = None
        self._keys: list[torch.Tensor | None] = [None] * layers
        self._values: list[torch.Tensor | None] = [None] * layers

    def extend(
        self, layer: int, position: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[kv_heads, n, head_dim]` at `position`; return all keys and values up to there."""
        end = position + keys.shape[1]
        own_keys, own_values = self._keys[layer], self._values[layer]
        if own_keys is None or own_values is None:
            own_keys = keys.new_empty((keys.shape[0], self.capacity, keys.shape[2]))
            own_values = values.new_empty((values.shape[0], self.capacity, values.shape[2]))
            self._keys[layer], self._values[layer] = own_keys, own_values
        own_keys[:, position:end] = keys
        own_values[:, position:end] = values
        self.length = end
        return own_keys[:, :end], own_values[:, :end]


class KVPool:
    """A budget of bytes. A session reserves its whole sequence before it runs.

    Args:
        budget_bytes: for all sessions together.
        token_bytes: what one position of one session takes on this partition.
        layers: layers of the partition.
    """

    def __init__(self, budget_bytes: int, token_bytes: int, layers: int) -> None:
        self.budget_bytes = budget_bytes
        self.token_bytes = token_bytes
        self.layers = layers
        self.used_bytes = 0

    def __repr__(self) -> str:
        return f"<KVPool {self.used_bytes}/{self.budget_bytes} bytes>"

    def reserve(self, capacity: int) -> SessionKV:
        """Reserve `capacity` positions.

        Raises:
            ResourceExhausted: the budget has no room now.
        """
        needed = capacity * self.token_bytes
        if self.used_bytes + needed > self.budget_bytes:
            raise ResourceExhausted(
                f"KV memory: {needed} bytes needed, {self.budget_bytes - self.used_bytes} of "
                f"{self.budget_bytes} free",
                retry_after_s=1.0,
            )
        self.used_bytes += needed
        return SessionKV(self.layers, capacity)

    def release(self, kv: SessionKV) -> None:
        """Give back what `reserve` took. The tensors go when the last reference does."""
        self.used_bytes -= kv.capacity * self.token_bytes

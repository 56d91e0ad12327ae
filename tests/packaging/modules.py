"""Modules that packages are made of in tests: the four of the promise, and one for each thing that can go wrong."""

from collections.abc import Callable

import torch
from torch import nn


class MLP(nn.Module):
    """Four even layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


class Conv(nn.Module):
    """Residual blocks, batch norm, in-place activations, a skip over the whole of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, 5)
        self.act = nn.ReLU(inplace=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = self.act(self.norm(self.stem(image)))
        x = stem + self.two(self.act(self.one(stem)))
        x = nn.functional.max_pool2d(x, 2)
        x = self.pool(x) + self.pool(stem)
        return self.head(x.flatten(1))


class Recommender(nn.Module):
    """Embedding tables, a bag of ids with a mask, dense features that come in late."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(80, 8)
        self.dense = nn.Linear(4, 8)
        self.score = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(
        self, user: torch.Tensor, history: torch.Tensor, dense: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        seen = history != 0
        bag = (self.items(history) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)
        x = torch.cat([self.users(user), bag, self.dense(dense)], dim=-1)
        return {"score": self.score(x).squeeze(-1).sigmoid(), "seen": seen.sum(1)}


class TwoByTwo(nn.Module):
    """Two inputs, the second first used late; two outputs, one made early."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.first(left))
        early = x.argmax(-1)
        return self.third(torch.tanh(self.second(x))) * right, early


class Tied(nn.Module):
    """One weight at both ends, a buffer that no checkpoint holds, a write to what another value still needs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.middle = nn.Linear(8, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.arange(8.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        skip = x
        y = self.middle(x) * self.scale
        skip.add_(1)
        skip[:, 0] = 3
        return self.out(y + skip)


class Flattens(nn.Module):
    """Between its layers no tensor has the batch as a dimension, only a multiple of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.one(x).reshape(-1)
        return self.two(flat[:, None]).reshape(x.shape[0], -1)


class Attends(nn.Module):
    """A fused kernel, a recurrent layer, several results of one operation, a boolean mask, a dead branch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        x, _ = self.rnn(x)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, :])
        top = self.drop(self.norm(y)).topk(2, dim=-1)
        return {"values": top.values, "indices": top.indices, "keep": ~keep}


def tensors(seed: int, batch: int, kind: str) -> tuple[torch.Tensor, ...]:
    """Inputs for the module of that name."""
    draw = torch.Generator().manual_seed(seed)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=draw)

    def ids(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (batch, *shape), generator=draw)

    makers: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "MLP": lambda: (floats(16),),
        "Conv": lambda: (floats(3, 12, 12),),
        "Recommender": lambda: (ids(50), ids(80, 7), floats(4)),
        "TwoByTwo": lambda: (floats(6), floats(4)),
        "Tied": lambda: (ids(20, 5),),
        "Flattens": lambda: (floats(4),),
        "Attends": lambda: (floats(6, 8), torch.cat([ids(2, 5), ids(1, 1) + 1], 1) > 0),
    }
    return makers[kind]()


MODULES: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (MLP, Conv, Recommender, TwoByTwo, Tied, Flattens, Attends)
}

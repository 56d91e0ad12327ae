"""Serve your own `torch.nn.Module` in stages.

    python examples/package_module.py ./two-tower
    stagemesh serve ./two-tower --stages 2

The folder then holds no Python code and no pickle: JSON graphs of allowed operators, and safetensors.
"""

import sys

import torch
from torch import nn

import stagemesh


class TwoTower(nn.Module):
    """A small recommendation model: who (ids), what they saw (ids), when (numbers) -> a score for each item."""

    def __init__(self, users: int = 10_000, items: int = 5_000, width: int = 64) -> None:
        super().__init__()
        self.users = nn.Embedding(users, width)
        self.items = nn.Embedding(items, width)
        self.context = nn.Linear(8, width)
        self.user_tower = nn.Sequential(nn.Linear(3 * width, 256), nn.ReLU(), nn.Linear(256, width))
        self.item_tower = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, width))

    def forward(
        self, user: torch.Tensor, history: torch.Tensor, context: torch.Tensor, candidates: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`[batch]`, `[batch, 20]`, `[batch, 8]` and `[batch, 50]` -> scores `[batch, 50]` and the best one `[batch]`."""
        seen = self.items(history).mean(dim=1)
        who = self.user_tower(torch.cat([self.users(user), seen, self.context(context)], dim=-1))
        scores = (self.item_tower(self.items(candidates)) @ who.unsqueeze(-1)).squeeze(-1)
        return {"scores": scores, "best": candidates.gather(1, scores.argmax(-1, keepdim=True)).squeeze(1)}


def main() -> None:
    """Package the model and say what became of it."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: package_module.py FOLDER")
    torch.manual_seed(0)
    example = (
        torch.randint(0, 10_000, (4,)),
        torch.randint(0, 5_000, (4, 20)),
        torch.randn(4, 8),
        torch.randint(0, 5_000, (4, 50)),
    )
    made = stagemesh.package(TwoTower(), example, sys.argv[1])
    for kind, tensors in (("takes", made.inputs), ("gives", made.outputs)):
        for tensor in tensors:
            print(f"{kind} {tensor.name:<12}{tensor.dtype} {list(tensor.shape)}")
    sizes = ", ".join(f"{size / 1e6:.2f}" for size in made.layer_bytes)
    print(f"{made.layers} pieces of {sizes} MB; any number of stages up to {made.layers}:")
    print(f"  stagemesh serve {sys.argv[1]} --stages {min(2, made.layers)}")


if __name__ == "__main__":
    main()

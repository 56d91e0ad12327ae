"""Falcon H1: each of its recurrent layers scales what it projects by factors that the model fills in as a whole."""

import torch
from transformers import PreTrainedModel

from .plain import Family


class FalconH1(Family):
    """The factors are in no checkpoint; the model makes them from its configuration."""

    def attach(self, base: PreTrainedModel, first: int, end: int) -> None:
        """Fill them in, for the layers that are left."""
        with torch.no_grad():
            base._init_weights(base)

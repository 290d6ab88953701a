"""One small, random-weight member of every family of transformers (and convolutional networks) people export.

A new family is one more entry of a `families_*.py`. Weights are lively (`examples/models.py`): activations,
attention maps and outputs stay spread out, with uneven channel norms.
"""

from __future__ import annotations

import families_convolutional
import families_decoders
import families_layers
import families_pairs
import families_speech
import families_text
import families_vision
import numpy as np
import torch
from family import Family
from models import enliven, settle

ZOO: dict[str, Family] = {
    **families_text.FAMILIES,
    **families_vision.FAMILIES,
    **families_convolutional.FAMILIES,
    **families_speech.FAMILIES,
    **families_decoders.FAMILIES,
    **families_pairs.FAMILIES,
    **families_layers.FAMILIES,
}


def network(name: str) -> torch.nn.Module:
    """The network of family `name` in evaluation mode, seeded and lively."""
    torch.manual_seed(0)
    model = ZOO[name].build()
    enliven(model, 0)
    settle(model, ZOO[name].feeds(32, np.random.default_rng(7)))
    return model.eval()

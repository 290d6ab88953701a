"""The training loop that the character models and the segmenter share. Needs torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def one_cycle(
    model: nn.Module,
    loss_of_batch: Callable[[], Tensor],
    steps: int,
    rate: float,
    decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    warm: float = 0.1,
    every: int = 50,
) -> None:
    """`steps` of AdamW under a one-cycle schedule that peaks at `rate` after the share `warm` of them.

    `loss_of_batch()` draws a batch; gradients are clipped to norm 1; the loss is printed `every` steps.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=warm)
    for step in range(steps):
        loss = loss_of_batch()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % every == 0:
            print(f"step {step + 1:5d}  loss {loss.item():.3f}", flush=True)

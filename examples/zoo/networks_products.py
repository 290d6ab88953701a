"""Networks whose values have heavy tails: gates, attention by kernels, interactions, sizes of boxes."""

from __future__ import annotations

import itertools
import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNELS: Final = ("cosformer", "performer")


class GatedMlp(nn.Module):
    """gMLP: one half of the channels, mixed along the tokens, times the other (Liu et al. 2021)."""

    def __init__(self, tokens: int, width: int = 64, classes: int = 7) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_GatedBlock(tokens, width) for _ in range(2))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x).mean(1))  # type: ignore[no-any-return]


class _GatedBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm, self.rows, self.gate = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.LayerNorm(width),
        )
        self.along, self.out = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = functional.gelu(self.rows(self.norm(x))).chunk(2, dim=-1)
        v = self.along(self.gate(v).transpose(1, 2)).transpose(1, 2)
        return x + self.out(u * v)  # type: ignore[no-any-return]


class StarNet(nn.Module):
    """Products of two linear maps of one image, instead of a function (Ma et al. 2024)."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.stages = nn.ModuleList()
        for width in (16, 32, 64):
            down = nn.Sequential(
                nn.Conv2d(width if width == 16 else width // 2, width, 3, 2, 1), nn.BatchNorm2d(width)
            )
            self.stages += [down, _Star(width)]
        self.norm, self.classifier = nn.BatchNorm2d(64), nn.Linear(64, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.stem(pixel_values)
        for stage in self.stages:
            x = stage(x)
        return self.classifier(self.norm(x).mean((2, 3)))  # type: ignore[no-any-return]


class _Star(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.ModuleList(nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.left, self.right = (nn.Conv2d(width, 3 * width, 1) for _ in range(2))
        self.out = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](self.near[0](x))
        h = self.norms[1](self.out(functional.relu6(self.left(h)) * self.right(h)))
        return x + self.near[1](h)  # type: ignore[no-any-return]


class KernelAttention(nn.Module):
    """Attention whose weights are products of positive features: cosines of positions (Qin et al. 2022) or
    exponentials of random directions (Choromanski et al. 2021).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(64)
        self.q_proj, self.k_proj, self.v_proj, self.out = (nn.Linear(64, 64) for _ in range(4))
        directions = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        self.register_buffer("directions", torch.linalg.qr(directions)[0] * 4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.norm(x)
        q, k, v = (p(h).view(b, n, 4, 16).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        rows = self.cosformer(q, k, v) if self.kind == "cosformer" else self.performer(q, k, v)
        return x + self.out(rows.transpose(1, 2).reshape(b, n, 64))  # type: ignore[no-any-return]

    def cosformer(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = torch.arange(1, q.shape[2] + 1)[:, None] * (math.pi / 2 / 24)
        q, k = (torch.cat([t * angle.sin(), t * angle.cos()], dim=-1) for t in (q.relu(), k.relu()))
        norm = 1 / torch.clamp(torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2)), min=1e-2)
        return torch.einsum("bhnd,bhde,bhn->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v), norm)

    def performer(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.features(q, (-1,)), self.features(k, (-1, -2))
        return (q @ (k.transpose(-2, -1) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-2, -1))

    def features(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        x = x * 0.5
        along = x @ self.directions.T
        return torch.exp(along - x.square().sum(-1, keepdim=True) / 2 - along.amax(axes, keepdim=True)) + 1e-4


class Boxes(nn.Module):
    """A pyramid of features, and the sizes of boxes as exponentials at every place (Tian et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 24, 32, 48)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())
            for a, b in itertools.pairwise(widths)
        )
        self.across = nn.ModuleList(nn.Conv2d(w, 32, 1) for w in widths[2:])
        self.smooth = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in widths[2:])
        self.sizes = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        levels, x = [], pixel_values
        for down in self.down:
            x = down(x)
            levels.append(x)
        levels = [across(level) for across, level in zip(self.across, levels[1:], strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + functional.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        found = [self.sizes(s(level)).flatten(2) for s, level in zip(self.smooth, levels, strict=True)]
        return torch.cat(found, dim=-1).transpose(1, 2).mul(0.5).exp()


class Interactions(nn.Module):
    """Click-through rates from products of embeddings: factorised pairs (Guo et al. 2017) or `dots` of
    all pairs (Naumov et al. 2019).
    """

    def __init__(self, dots: bool) -> None:
        super().__init__()
        self.dots = dots
        self.tables = nn.ModuleList(nn.Embedding(rows, 16) for rows in (20, 30, 40))
        self.numbers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(22 if dots else 64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        rows = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        z = torch.stack([self.numbers(numbers), *rows], dim=1)
        if self.dots:
            pairs = z @ z.transpose(1, 2)
            i, j = torch.tril_indices(4, 4, -1)
            return self.top(torch.cat([z[:, 0], pairs[:, i, j]], dim=1)).sigmoid()  # type: ignore[no-any-return]
        crossed = 0.5 * (z.sum(1) ** 2 - (z**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(crossed + self.top(z.flatten(1)))

"""Networks that mix tokens or channels in other ways than one softmax over tokens, for the zoo."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

CHOICES: Final = ("scatter", "one-hot", "threshold")


class Experts(nn.Module):
    """Every token's two best of four feed-forward networks, weighted (Shazeer et al. 2017). All are computed;
    the weights of the others are 0, written in one of `CHOICES`.
    """

    def __init__(self, form: str, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.form, self.embedding, self.norm = form, nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.gate, self.head = nn.Linear(width, 4, bias=False), nn.Linear(width, vocabulary)
        self.up = nn.Parameter(torch.randn(4, width, 128) / width**0.5)
        self.down = nn.Parameter(torch.randn(4, 128, width) / 128**0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        h = self.norm(x)
        hidden = functional.gelu(torch.einsum("btd,edf->btef", h, self.up))
        results = torch.einsum("btef,efd->bted", hidden, self.down)
        weights = self.weights(3 * self.gate(h))
        return self.head(x + (results * weights[..., None]).sum(2))  # type: ignore[no-any-return]

    def weights(self, scores: Tensor) -> Tensor:
        best, which = scores.topk(2, dim=-1)
        if self.form == "scatter":
            return torch.zeros_like(scores).scatter(-1, which, best.softmax(-1))
        if self.form == "one-hot":
            return (functional.one_hot(which, 4) * best.softmax(-1)[..., None]).sum(-2)
        return scores.masked_fill(scores < best[..., -1:], float("-inf")).softmax(-1)


class GatheredExperts(nn.Module):
    """Each expert computes only the tokens that chose it: of Mixtral's two best, whose results are added
    (Jiang et al. 2024), or of Switch's one, which is written (Fedus et al. 2022).
    """

    def __init__(self, best: int, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.best, self.embedding, self.norm = best, nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.gate, self.head = nn.Linear(width, 4, bias=False), nn.Linear(width, vocabulary)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width)) for _ in range(4)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        h = self.norm(x)
        weights = self.gate(h).softmax(-1)
        mixed = self.written(h, weights) if self.best == 1 else self.added(h, weights)
        return self.head(x + mixed)  # type: ignore[no-any-return]

    def written(self, h: Tensor, weights: Tensor) -> Tensor:
        best, which = weights.max(-1)
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            mine = which == i
            out[mine] = expert(h[mine]) * best[mine].unsqueeze(-1)
        return out

    def added(self, h: Tensor, weights: Tensor) -> Tensor:
        rows = h.flatten(0, 1)
        best, which = weights.flatten(0, 1).topk(self.best, dim=-1)
        out = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            token, choice = torch.where(which == i)
            out.index_add_(0, token, expert(rows[token]) * best[token, choice, None])
        return out.view_as(h)


class ImageTokens(nn.Module):
    """A language model's input: the tokens that stand for an image are replaced by its features, in order."""

    def __init__(self, vocabulary: int, image: int, width: int = 64) -> None:
        super().__init__()
        self.image, self.embedding, self.norm = image, nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.project, self.head = nn.Linear(32, width), nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, features: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        here = (input_ids == self.image)[..., None].expand_as(x)
        return self.head(self.norm(x.masked_scatter(here, self.project(features))))  # type: ignore[no-any-return]


class ChannelAttention(nn.Module):
    """XCiT: attention between channels, of unit length along the tokens, and depthwise convolutions between
    tokens (El-Nouby et al. 2021).
    """

    def __init__(self, width: int = 64, classes: int = 7) -> None:
        super().__init__()
        self.patches, self.norm, self.classifier = (
            nn.Conv2d(3, width, 4, 4),
            nn.LayerNorm(width),
            nn.Linear(width, classes),
        )
        self.blocks = nn.ModuleList(_ChannelBlock(width) for _ in range(2))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x).mean(1))  # type: ignore[no-any-return]


class _ChannelBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out, self.heat = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.Parameter(torch.ones(4, 1, 1)),
        )
        self.near = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2))
        self.batch = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        rows = ((q @ k.transpose(-2, -1)) * self.heat).softmax(dim=-1) @ v
        x = x + self.out(rows.permute(0, 3, 1, 2).reshape(b, n, c))
        image = self.norms[1](x).transpose(1, 2).reshape(b, c, 8, 8)
        image = self.near[1](self.batch(functional.gelu(self.near[0](image))))
        x = x + image.flatten(2).transpose(1, 2)
        return x + self.mlp(self.norms[2](x))  # type: ignore[no-any-return]


class LinearVision(nn.Module):
    """EfficientViT: ReLU linear attention at two scales between convolutions (Cai et al. 2023)."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
        )  # fmt: skip
        self.qkv = nn.Conv2d(32, 96, 1, bias=False)
        self.wider = nn.Sequential(
            nn.Conv2d(96, 96, 5, padding=2, groups=96, bias=False),
            nn.Conv2d(96, 96, 1, groups=12, bias=False),
        )
        self.out, self.batch = nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.classifier = nn.Linear(32, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.stem(pixel_values)
        near = self.qkv(x)
        both = torch.cat([near, self.wider(near)], dim=1)
        b, _, h, w = both.shape
        q, k, v = both.reshape(b, 8, 24, h * w).split(8, dim=2)
        q, k, v = functional.relu(q), functional.relu(k), functional.pad(v, (0, 0, 0, 1), value=1.0)
        rows = (v @ k.transpose(-1, -2)) @ q
        rows = rows[:, :, :-1] / (rows[:, :, -1:] + 1e-5)
        x = x + self.batch(self.out(rows.reshape(b, 64, h, w)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Retention(nn.Module):
    """RetNet's parallel form: causal scores that decay with the distance, a norm of each head, a gate
    (Sun et al. 2023).
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.value, self.gate, self.out = (
            nn.Linear(width, width) for _ in range(5)
        )
        self.norm, self.heads = nn.LayerNorm(width), nn.GroupNorm(4, width)
        self.register_buffer("decay", torch.log(1 - 2.0 ** (-5 - torch.arange(4.0))))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        h = self.norm(x)
        q, k, v = (f(h).view(b, n, 4, -1).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.value))
        place = torch.arange(n).float()
        far = place[:, None] - place[None]
        kept = torch.where(far >= 0, torch.exp(far * self.decay[:, None, None]), torch.zeros(()))
        rows = (q @ k.transpose(-1, -2) * 0.25 * kept) @ v
        rows = self.heads(rows.transpose(1, 2).reshape(b * n, c)).view(b, n, c)
        return x + self.out(functional.silu(self.gate(h)) * rows)  # type: ignore[no-any-return]


class Messages(nn.Module):
    """Messages along the edges of graphs [B, 2, E], summed up (Gilmer et al. 2017), or the largest of each
    channel, at the nodes [B, N, F] that they reach.
    """

    def __init__(self, reduction: str, width: int = 32) -> None:
        super().__init__()
        self.reduction, self.embed, self.head = reduction, nn.Linear(16, width), nn.Linear(width, 5)
        self.send = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.receive = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.embed(x)
        start, end = (edges[:, i, :, None].expand(-1, -1, h.shape[-1]) for i in range(2))
        for send, receive in zip(self.send, self.receive, strict=True):
            ends = torch.cat([h.gather(1, start), h.gather(1, end)], dim=-1)
            sent = functional.relu(send(ends))
            reached = torch.zeros_like(h).scatter_reduce(1, end, sent, self.reduction)
            h = h + functional.relu(receive(reached))
        return self.head(h.mean(dim=1))  # type: ignore[no-any-return]

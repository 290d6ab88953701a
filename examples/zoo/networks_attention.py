"""Attention from torch's own layers and as people write it by hand, for the zoo."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

FORMS: Final = ("einsum", "einsum-tokens", "einsum-sequence-first", "batched", "swapped", "turned", "linear",
                "efficient", "talking", "by-hand")  # fmt: skip


class Encoder(nn.Module):
    """`nn.TransformerEncoder`, batch or sequence `first`; `mask` is true where there is padding."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.first:
            return self.encoder(x, src_key_padding_mask=mask)  # type: ignore[no-any-return]
        return self.encoder(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """`nn.Transformer`: an encoder, and a causal decoder that attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(64, 4, 2, 2, 128, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        return self.transformer(x, y, tgt_mask=mask)  # type: ignore[no-any-return]


class SetTransformer(nn.Module):
    """Induced points, then a few seeds that pool the set (Lee et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.seeds = (nn.Parameter(torch.zeros(1, n, 64)) for n in (8, 3))
        self.attention = nn.ModuleList(nn.MultiheadAttention(64, 4, batch_first=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(6))
        self.rows = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def block(self, k: int, q: Tensor, x: Tensor) -> Tensor:
        h = self.norms[2 * k](q + self.attention[k](q, x, x, need_weights=False)[0])
        return self.norms[2 * k + 1](h + torch.relu(self.rows[k](h)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(0, self.points.expand(x.shape[0], -1, -1), x)
        x = self.block(1, x, h)
        return self.block(2, self.seeds.expand(x.shape[0], -1, -1), x)


class EinsumAttention(nn.Module):
    """One residual attention block of four heads, written in one of `FORMS` or over "windows"."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.norm = form, nn.LayerNorm(64)
        self.q_proj, self.k_proj, self.v_proj, self.out = (nn.Linear(64, 64) for _ in range(4))
        self.mix = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.norm(x)
        q, k, v = (f(h).view(b, n, 4, 16) for f in (self.q_proj, self.k_proj, self.v_proj))
        return x + self.out(self.attend(q * 0.25, k, v).reshape(b, n, 64))  # type: ignore[no-any-return]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rows [B, N, H, D] of queries, keys and values; the result alike."""
        b, n, heads, dim = q.shape
        if self.form == "einsum-tokens":
            weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            return torch.einsum("bhij,bjhd->bihd", weights, v)
        if self.form == "einsum-sequence-first":
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
            weights = torch.einsum("ibhd,jbhd->ijbh", q, k).softmax(1)
            return torch.einsum("ijbh,jbhd->ibhd", weights, v).transpose(0, 1)
        if self.form == "batched":
            q, k, v = (t.transpose(1, 2).reshape(b * heads, n, dim) for t in (q, k, v))
            rows = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
            return rows.view(b, heads, n, dim).transpose(1, 2)
        if self.form == "windows":
            q, k, v = (t.reshape(b, n // 4, 4, heads, dim).transpose(2, 3) for t in (q, k, v))
            return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(2, 3)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # B H N D
        return self.by_heads(q, k, v).transpose(1, 2)

    def by_heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.form == "swapped":
            return (k @ q.transpose(-1, -2)).softmax(-2).transpose(-1, -2) @ v
        if self.form == "turned":
            weights = (q @ k.transpose(-1, -2)).softmax(-1)
            return (v.transpose(-1, -2) @ weights.transpose(-1, -2)).transpose(-1, -2)
        if self.form == "linear":
            q, k = nn.functional.elu(4 * q) + 1, nn.functional.elu(k) + 1
            return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2) + 1e-6)
        if self.form == "efficient":
            return q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)
        scores = torch.einsum("bhid,bhjd->bhij", q, k)
        if self.form == "talking":
            scores = torch.einsum("bhij,hg->bgij", scores, self.mix + torch.eye(4))
        if self.form == "by-hand":
            scores = scores.clamp(-10, 10)
            grown = (scores - scores.amax(-1, keepdim=True)).exp()
            return torch.einsum("bhij,bhjd->bhid", grown / grown.sum(-1, keepdim=True), v)
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)

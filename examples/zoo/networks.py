"""Networks of the zoo that have no class in `transformers`."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Embedder(nn.Module):
    """A text encoder whose tokens are averaged under the mask; head "normalised" divides by the norm too."""

    def __init__(self, encoder: nn.Module, head: str) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).expand(tokens.size()).float()
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, p=2, dim=1) if self.head == "normalised" else mean


class Mixer(nn.Module):
    """MLP-Mixer: products along the tokens, then along the channels (Tolstikhin et al. 2021)."""

    def __init__(self, width: int = 64, tokens: int = 16, classes: int = 7) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), _mlp(tokens, 32), nn.LayerNorm(width), _mlp(width, 128)])
            for _ in range(2)
        )
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for norm1, mix, norm2, mlp in self.blocks:  # type: ignore[misc]
            x = x + mix(norm1(x).transpose(1, 2)).transpose(1, 2)
            x = x + mlp(norm2(x))
        return self.classifier(self.norm(x).mean(dim=1))  # type: ignore[no-any-return]


class MaskTransformer(nn.Module):
    """A ViT encoder with a mask-transformer decoder: class tokens beside patches, masks by their products
    (Strudel et al. 2021), upsampled by repetition.
    """

    def __init__(self, width: int = 64, classes: int = 5, side: int = 4) -> None:
        super().__init__()
        self.side, self.patch = side, 8
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.position_embeddings = nn.Parameter(torch.zeros(1, side * side, width))
        self.cls_token = nn.Parameter(torch.zeros(1, classes, width))
        self.encoder = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.decoder = nn.ModuleList(Block(width, 4) for _ in range(1))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, width)
        self.mask_norm = nn.LayerNorm(classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.position_embeddings
        for block in self.encoder:
            x = block(x)
        classes = self.cls_token.shape[1]
        x = torch.cat([self.project(x), self.cls_token.expand(x.shape[0], -1, -1)], dim=1)
        for block in self.decoder:
            x = block(x)
        x = self.norm(x)
        masks = self.mask_norm(x[:, :-classes] @ x[:, -classes:].transpose(1, 2))
        masks = masks.transpose(1, 2).reshape(x.shape[0], classes, self.side, self.side)
        return nn.functional.interpolate(masks, scale_factor=self.patch, mode="nearest")


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.mlp = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            _mlp(width, 2 * width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, s, c))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """Depthwise separable convolutions, ReLU6, global average pooling (Howard et al. 2017)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48), classes: int = 7) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, widths[0], 3, 2)]
        for before, after in itertools.pairwise(widths):
            layers += [_conv(before, before, 3, 1, before), _conv(before, after, 1, 1)]
        self.layers, self.classifier = nn.Sequential(*layers), nn.Linear(widths[-1], classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.layers(pixel_values)
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def _mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _conv(before: int, after: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6())

"""Train a small vision transformer on the 8x8 digits and export it to ONNX. Needs torch; about a minute.

python examples/digits/train.py            # writes digits_vit.onnx beside this file
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from data import Split, load_split
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, PATCH, CLASSES = 64, 4, 4, 2, 10
TOKENS = (8 // PATCH) ** 2


class Block(nn.Module):
    """Pre-norm transformer layer: [B, T, WIDTH] -> [B, T, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.project(self.attend(self.norm1(x))))
        inner = functional.gelu(self.expand(self.norm2(x)))
        result: Tensor = x + self.drop(self.contract(inner))
        return result

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        heads: Tensor = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each B H T D
        scores = (q @ k.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5  # B H T T
        mixed: Tensor = scores.softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(batch, tokens, WIDTH)


class DigitsViT(nn.Module):
    """Patch embedding by convolution, class token, LAYERS blocks, linear head: [B, 1, 8, 8] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # B T WIDTH
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


def augment(images: Tensor) -> Tensor:
    """Each image of [B, 1, 8, 8] shifted by at most a pixel, slightly rotated and scaled."""
    count = len(images)
    angle, scale = torch.randn(count) * 0.12, 1 + torch.randn(count) * 0.06
    shift = (torch.rand(count, 2) - 0.5) * 0.35
    row = torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1)
    column = torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([row, column], 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def train(split: Split, epochs: int, seed: int) -> DigitsViT:
    torch.manual_seed(seed)
    images, labels = torch.from_numpy(split.x_train), torch.from_numpy(split.y_train)
    model = DigitsViT()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images))
        for start in range(0, len(images) - 63, 64):
            rows = order[start : start + 64]
            loss = functional.cross_entropy(model(augment(images[rows])), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.3f}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("digits_vit.onnx"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    split = load_split()
    model = train(split, options.epochs, options.seed)
    score = accuracy(model, torch.from_numpy(split.x_test), torch.from_numpy(split.y_test))
    print(f"test accuracy {score:.4f}")
    warnings.simplefilter("ignore")
    torch.onnx.export(
        model.eval(), (torch.from_numpy(split.x_test[:2]),), str(options.output), dynamo=False,
        opset_version=17, input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()

"""Train a small Segmenter on drawn scenes and export it. Needs torch.

    python examples/segmentation/train.py     # writes segmenter.onnx beside this file; minutes

A ViT encoder; a mask transformer, in which class tokens attend with the patches; the masks are the products
of normalised patches and classes, brought to the image's size by nearest neighbours; the output is the most
likely class of every pixel, int64 [batch, SIDE, SIDE]. One thread and a fixed seed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from scenes import CLASSES, SIDE, scenes
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1]))
from training import one_cycle

PATCH, WIDTH, HEADS, ENCODER, DECODER = 4, 96, 3, 4, 2
GRID = SIDE // PATCH


class Block(nn.Module):
    """A pre-norm transformer layer on [B, N, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, count, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, count, WIDTH))
        result: Tensor = x + self.contract(functional.gelu(self.expand(self.norm2(x))))
        return result


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn(1, GRID * GRID, WIDTH) * 0.02)
        self.encoder = nn.ModuleList(Block() for _ in range(ENCODER))
        self.norm, self.bridge = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.classes = nn.Parameter(torch.randn(1, len(CLASSES), WIDTH) * 0.02)
        self.decoder = nn.ModuleList(Block() for _ in range(DECODER))
        self.decoder_norm, self.mask_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(len(CLASSES))
        self.patch_head, self.class_head = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def masks(self, image: Tensor) -> Tensor:
        """[B, CLASSES, GRID, GRID]"""
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        for block in self.encoder:
            x = block(x)
        x = torch.cat([self.bridge(self.norm(x)), self.classes.expand(x.shape[0], -1, -1)], 1)
        for block in self.decoder:
            x = block(x)
        x = self.decoder_norm(x)
        patches, classes = x[:, : GRID * GRID], x[:, GRID * GRID :]
        patches = functional.normalize(self.patch_head(patches), dim=-1)
        classes = functional.normalize(self.class_head(classes), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).reshape(-1, len(CLASSES), GRID, GRID)  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        return functional.interpolate(self.masks(image), scale_factor=PATCH, mode="nearest").argmax(1)


def train(steps: int, seed: int) -> Segmenter:
    torch.manual_seed(seed)
    model = Segmenter()
    images, labels = (torch.from_numpy(a) for a in scenes(8192, seed=1))
    centres = labels[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]

    def loss() -> Tensor:
        picked = torch.randint(len(images), (24,))
        return functional.cross_entropy(model.masks(images[picked]), centres[picked])

    one_cycle(model, loss, steps, 2e-3, 0.02, every=100)
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Batch symbolic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, SIDE, SIDE),), str(path), dynamo=False, opset_version=17,
            input_names=["image"], output_names=["classes"],
            dynamic_axes={"image": {0: "batch"}, "classes": {0: "batch"}},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("segmenter.onnx"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = train(options.steps, options.seed)
    export(model, options.output)
    images, labels = (torch.from_numpy(a) for a in scenes(256, seed=2))
    with torch.no_grad():
        found = torch.cat([model(part) for part in images.split(32)])
    print(f"pixels right on held-out scenes: {(found == labels).float().mean().item():.4f}")
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()

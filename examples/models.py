"""Export transformers of real size (and tiny ones) with random but lively weights to ONNX.

    python examples/models.py deit-small -o deit-small.onnx
    python examples/models.py bert-tiny -o bert-tiny.onnx --exporter dynamo --attention eager

Weights are seeded. No trained checkpoint is read, so accuracy against labels means nothing here; what
is meaningful is the distance between the integer model and this float model, because the weights keep
activations, attention maps and logits spread out, with uneven channel norms. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Feeds = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Architecture:
    """One exportable network: `family` is that of a `transformers` config, sizes are as there.

    A swin, segformer or resnet has the sizes of its first stage, and `depths` gives the layers of each stage;
    the later stages, and those of a mobilenet_v2, are as the config's defaults have them.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    depths: tuple[int, ...] = ()
    image: int = 224
    patch: int = 16
    vocabulary: int = 30522
    positions: int = 512
    classes: int = 1000


ARCHITECTURES: dict[str, Architecture] = {
    "deit-tiny": Architecture("vit", 12, 192, 3, 768),
    "deit-small": Architecture("vit", 12, 384, 6, 1536),
    "vit-base": Architecture("vit", 12, 768, 12, 3072),
    "swin-tiny": Architecture("swin", 12, 96, 3, 384, (2, 2, 6, 2)),
    "segformer-b0": Architecture("segformer", 8, 32, 1, 128, (2, 2, 2, 2), image=512, classes=150),
    "resnet-50": Architecture("resnet", 50, 64, 0, 256, (3, 4, 6, 3)),
    "mobilenet-v2": Architecture("mobilenet_v2", 53, 32, 0, 0),
    "vit-tiny2": Architecture("vit", 2, 64, 2, 128, image=32, patch=8, classes=10),
    "bert-base": Architecture("bert", 12, 768, 12, 3072, classes=8),
    "bert-tiny": Architecture("bert", 2, 128, 2, 512, vocabulary=1000, positions=128, classes=8),
}


def sample_feeds(name: str, count: int, *, sequence: int = 64, seed: int = 0) -> Feeds:
    """Seeded inputs for architecture `name`, samples along axis 0.

    bert: int64 [count, sequence] `input_ids`, `attention_mask` (a prefix of ones, at least a quarter
    of the row), `token_type_ids`. Others: `pixel_values` float32 [count, 3, S, S], smooth random images about
    zero, unequal in contrast.
    """
    arch = ARCHITECTURES[name]
    rng = np.random.default_rng([seed, 0x1A7C])
    if arch.family != "bert":
        return {"pixel_values": smooth_images(rng, count, arch.image)}
    lengths = rng.integers(max(2, sequence // 4), sequence + 1, size=count)
    mask = (np.arange(sequence)[None, :] < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1, arch.vocabulary, size=(count, sequence)) * mask
    second = (np.arange(sequence)[None, :] >= lengths[:, None] // 2).astype(np.int64) * mask
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask, "token_type_ids": second}


def smooth_images(rng: np.random.Generator, count: int, side: int) -> NDArray[np.float32]:
    """Sums of plane waves with a 1/f amplitude plus a little noise: [count, 3, side, side]."""
    axis = np.arange(side, dtype=np.float32) / side
    images = np.empty((count, 3, side, side), np.float32)
    for index in range(count):
        image = np.zeros((3, side, side), np.float32)
        for _ in range(12):
            fy, fx = rng.integers(-side // 16 - 1, side // 16 + 2, size=2)
            wave = np.cos(2 * np.pi * (fy * axis[:, None] + fx * axis[None, :]) + rng.uniform(0, 2 * np.pi))
            image += rng.normal(size=(3, 1, 1)) * wave / np.hypot(1.0, np.hypot(fy, fx)) ** 0.5
        contrast = rng.uniform(0.4, 1.2)
        noise = rng.normal(scale=0.1, size=image.shape)
        images[index] = contrast * (image / image.std() + noise) + rng.normal(scale=0.3, size=(3, 1, 1))
    return images


def build(name: str, *, attention: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    """The float network `name` in evaluation mode, weights drawn from `seed`."""
    import torch
    import transformers

    arch = ARCHITECTURES[name]
    shared: dict[str, Any] = {
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.intermediate,
        "num_labels": arch.classes,
        "attn_implementation": attention,
    }
    torch.manual_seed(seed)
    if arch.family == "vit":
        vit = transformers.ViTConfig(image_size=arch.image, patch_size=arch.patch, **shared)
        model: torch.nn.Module = transformers.ViTForImageClassification(vit)
    elif arch.family == "swin":
        heads = [arch.heads * 2**stage for stage in range(len(arch.depths))]
        swin = transformers.SwinConfig(
            image_size=arch.image, patch_size=4, embed_dim=arch.hidden, depths=list(arch.depths),
            num_heads=heads, num_labels=arch.classes,
        )  # fmt: skip
        model = transformers.SwinForImageClassification(swin)
    elif arch.family == "segformer":
        segformer = transformers.SegformerConfig(depths=list(arch.depths), num_labels=arch.classes)
        model = transformers.SegformerForSemanticSegmentation(segformer)
    elif arch.family == "resnet":
        resnet = transformers.ResNetConfig(depths=list(arch.depths), num_labels=arch.classes)
        model = transformers.ResNetForImageClassification(resnet)
    elif arch.family == "mobilenet_v2":
        mobilenet = transformers.MobileNetV2Config(image_size=arch.image, num_labels=arch.classes)
        model = transformers.MobileNetV2ForImageClassification(mobilenet)
    else:
        bert = transformers.BertConfig(
            vocab_size=arch.vocabulary, max_position_embeddings=arch.positions, **shared
        )
        model = transformers.BertForSequenceClassification(bert)
    enliven(model, seed)
    if arch.family in CONVOLUTIONAL:
        settle(model, sample_feeds(name, 8, seed=7))
    return model.eval()


def settle(model: torch.nn.Module, feeds: Feeds) -> None:
    """Let batch normalisation learn the size of its inputs.

    Not their means: what a random network does with all inputs alike would be taken away, and the small
    differences that are left amplified, noise included, at every layer.
    """
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    if norms:
        model.train()
        with torch.no_grad():
            model(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    for norm in norms:
        norm.running_var += norm.running_mean**2
        norm.running_mean.zero_()


def enliven(model: torch.nn.Module, seed: int) -> None:
    """Redraw every parameter of `model` in place so that no layer is degenerate.

    Linear and convolution weights have standard deviation gain/sqrt(K), times a log-normal factor per
    output channel; gain is 1.4 for queries and keys (attention scores of deviation about 2). Gains of
    normalisations are log-normal with a few large channels. Embeddings have deviation 0.5, and so has every
    other parameter that starts as zeros; other constants get a log-normal factor.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    generator = torch.Generator().manual_seed(seed + 1)
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d)
    done: set[torch.nn.Parameter] = set()

    def normal(shape: tuple[int, ...], deviation: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * deviation

    with torch.no_grad():
        for path, module in model.named_modules():
            weight, bias = (getattr(module, key, None) for key in ("weight", "bias"))
            if not isinstance(weight, torch.nn.Parameter):
                continue
            if "Norm" in type(module).__name__:
                spread = 0.1 if "Batch" in type(module).__name__ else 0.25
                gain = normal(tuple(weight.shape), spread).exp()
                gain[torch.randperm(len(gain), generator=generator)[: max(1, len(gain) // 64)]] *= (
                    1 + 6 * spread
                )
                weight.copy_(gain)
                if bias is not None:
                    bias.copy_(normal(tuple(bias.shape), 0.15))
            elif isinstance(module, (torch.nn.Linear, Conv1D, *convolutions)):
                outputs = weight.shape[-1] if isinstance(module, Conv1D) else weight.shape[0]
                fan_in = weight.numel() // outputs
                uneven = normal((outputs,) + (1,) * (weight.dim() - 1), 0.25).exp()
                gain_of_path = 1.4 if path.rsplit(".", 1)[-1] in _SCORE_LAYERS else 1.0
                gain_of_path = 2.0 if path.endswith("classifier") else gain_of_path
                drawn = normal(tuple(weight.shape), gain_of_path / fan_in**0.5)
                weight.copy_(drawn * (uneven.reshape(-1) if isinstance(module, Conv1D) else uneven))
                if bias is not None:
                    bias.copy_(normal(tuple(bias.shape), 0.1))
            elif isinstance(module, torch.nn.Embedding):
                weight.copy_(normal(tuple(weight.shape), 0.5))
            else:
                continue
            done.update(p for p in (weight, bias) if p is not None)
        for path, parameter in model.named_parameters():
            if path.endswith(("cls_token", "position_embeddings")) or (
                parameter not in done and not parameter.any()
            ):
                parameter.copy_(normal(tuple(parameter.shape), 0.5))
            elif parameter not in done and parameter.numel() > 1 and parameter.std() == 0:
                parameter.mul_(normal(tuple(parameter.shape), 0.25).exp())


CONVOLUTIONAL = ("resnet", "mobilenet_v2")
_SCORE_LAYERS = frozenset({"query", "key", "q_proj", "k_proj"})


def export(
    name: str,
    path: Path,
    *,
    exporter: str = "legacy",
    opset: int | None = None,
    attention: str = "sdpa",
    token_types: bool = True,
    seed: int = 0,
) -> Path:
    """Write architecture `name` to `path` as ONNX and return `path`.

    Batch (and, for bert, sequence) are symbolic; the one output is `logits`. `exporter` is "legacy"
    (TorchScript, opset 13..17, default 17; sdpa attention needs 14) or "dynamo" (opset >= 18, default 18;
    large weights go to `<path>.data` beside it). Raises ValueError for an opset the exporter does not write.
    """
    import torch

    arch = ARCHITECTURES[name]
    feeds = sample_feeds(name, 2, sequence=16, seed=seed)
    if not token_types:
        feeds.pop("token_type_ids", None)
    names = list(feeds)
    tensors = tuple(torch.from_numpy(value) for value in feeds.values())
    model = _logits_only(build(name, attention=attention, seed=seed), names)
    symbols = {0: "batch"} if arch.family != "bert" else {0: "batch", 1: "sequence"}
    opset = opset if opset is not None else (17 if exporter == "legacy" else 18)
    with _quiet():
        if exporter == "legacy":
            lowest = 14 if attention == "sdpa" else 13
            if not lowest <= opset <= 17:
                raise ValueError(f"legacy exporter writes {attention} at opset {lowest}..17, not {opset}")
            torch.onnx.export(
                model, tensors, str(path), dynamo=False, opset_version=opset,
                input_names=names, output_names=["logits"],
                dynamic_axes={**dict.fromkeys(names, symbols), "logits": {0: "batch"}},
            )  # fmt: skip
        else:
            if opset < 18:
                raise ValueError(f"dynamo exporter writes opset >= 18, not {opset}")
            dims = {axis: torch.export.Dim(symbol) for axis, symbol in symbols.items()}
            torch.onnx.export(
                model, tensors, str(path), dynamo=True, opset_version=opset, verbose=False,
                input_names=names, output_names=["logits"],
                dynamic_shapes=(tuple(dims for _ in names),),
            )  # fmt: skip
    return path


def _logits_only(model: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """`model` with positional inputs `names` and the logits tensor as the only output."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(names, tensors, strict=True))).logits
            return logits

    return Logits().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' deprecation warnings and progress text."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def histogram(path: Path) -> Counter[str]:
    """How often each operator occurs in the ONNX file, subgraphs not counted."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return Counter(".".join(filter(None, (node.domain, node.op_type))) for node in graph.node)


def check(name: str, path: Path, *, attention: str = "sdpa", seed: int = 0) -> float:
    """Largest |difference| of the exported logits from torch, at a batch and length not used to export."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = {item.name for item in session.get_inputs()}
    feeds = {k: v for k, v in sample_feeds(name, 3, sequence=24, seed=seed + 1).items() if k in known}
    with torch.no_grad():
        model = build(name, attention=attention, seed=seed)
        expected = model(**{key: torch.from_numpy(value) for key, value in feeds.items()}).logits.numpy()
    return float(np.abs(session.run(None, feeds)[0] - expected).max())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export a transformer with random, lively weights to ONNX.")
    parser.add_argument("name", choices=ARCHITECTURES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--exporter", choices=("legacy", "dynamo"), default="legacy")
    parser.add_argument("--opset", type=int, help="legacy 13..17 (default 17), dynamo 18 up (default 18)")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--no-token-types", action="store_true", help="bert: leave out token_type_ids")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare with torch through onnxruntime")
    options = parser.parse_args(arguments)
    export(
        options.name, options.output, exporter=options.exporter, opset=options.opset,
        attention=options.attention, token_types=not options.no_token_types, seed=options.seed,
    )  # fmt: skip
    counts = ", ".join(f"{op} {count}" for op, count in histogram(options.output).most_common())
    print(f"{options.output}: {counts}")
    if options.check:
        error = check(options.name, options.output, attention=options.attention, seed=options.seed)
        print(f"largest difference from torch: {error:.2e}")
        return 0 if error < 1e-2 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

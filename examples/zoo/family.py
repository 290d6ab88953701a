"""What a family of the zoo is, inputs, and builders of families that differ by their configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from models import smooth_images
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
VOCABULARY = 100
SEQUENCE = 24
TEXT = {0: "batch", 1: "sequence"}
IMAGE = {0: "batch"}
MASKED_TEXT = {"input_ids": TEXT, "attention_mask": TEXT}


@dataclass(frozen=True)
class Family:
    """`build` makes the network, `feeds(count, rng)` its inputs, `axes` names the dynamic axes of each input.

    `pick` is the output that is exported (default: the first tensor).
    """

    build: Callable[[], torch.nn.Module]
    feeds: Callable[[int, np.random.Generator], Feeds]
    axes: dict[str, dict[int, str]]
    pick: str = ""


def id_feeds(count: int, rng: np.random.Generator) -> Feeds:
    return {"input_ids": rng.integers(3, VOCABULARY, size=(count, SEQUENCE))}


def text_feeds(count: int, rng: np.random.Generator) -> Feeds:
    lengths = rng.integers(SEQUENCE // 4, SEQUENCE + 1, size=count)
    mask = (np.arange(SEQUENCE)[None, :] < lengths[:, None]).astype(np.int64)
    words = np.where(mask, rng.integers(3, VOCABULARY, size=(count, SEQUENCE)), 1)
    words[np.arange(count), lengths - 1] = 2  # the end-of-text token
    return {"input_ids": words, "attention_mask": mask}


def pair_feeds(count: int, rng: np.random.Generator) -> Feeds:
    return {**text_feeds(count, rng), "decoder_input_ids": rng.integers(3, VOCABULARY, size=(count, 12))}


def image_feeds(side: int) -> Callable[[int, np.random.Generator], Feeds]:
    return lambda count, rng: {"pixel_values": smooth_images(rng, count, side)}


def wave_feeds(count: int, rng: np.random.Generator) -> Feeds:
    time = np.arange(1600) / 1600
    tones = rng.uniform(5, 200, size=(count, 4, 1))
    wave = (np.sin(2 * np.pi * tones * time) * rng.normal(size=(count, 4, 1))).sum(axis=1)
    return {"input_values": (wave / wave.std(axis=1, keepdims=True)).astype(np.float32)}


def mel_feeds(name: str, shape: tuple[int, int]) -> Callable[[int, np.random.Generator], Feeds]:
    def feeds(count: int, rng: np.random.Generator) -> Feeds:
        side = 32 * -(-max(shape) // 32)
        return {name: smooth_images(rng, count, side)[:, 0, : shape[0], : shape[1]].copy()}

    return feeds


def widths(width: int = 64) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
    }


def encoder(kind: str, head: str = "Model", **extra: Any) -> Family:
    """A text encoder with a padding mask; `extra` overrides its configuration."""

    def build() -> torch.nn.Module:
        sizes = {**widths(), "vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 7}
        config = getattr(hf, f"{kind}Config")(**{**sizes, **extra})
        return getattr(hf, f"{kind}{head}")(config)  # type: ignore[no-any-return]

    return Family(build, text_feeds, MASKED_TEXT)


def decoder(kind: str, masked: bool = False, **extra: Any) -> Family:
    """A causal language model."""

    def build() -> torch.nn.Module:
        sizes = {
            **widths(),
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        config = getattr(hf, f"{kind}Config")(**{**sizes, **extra})
        return getattr(hf, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)  # type: ignore[no-any-return]

    axes = MASKED_TEXT if masked else {"input_ids": TEXT}
    return Family(build, text_feeds if masked else id_feeds, axes)


def vision(kind: str, head: str = "Model", side: int = 32, pick: str = "", **extra: Any) -> Family:
    """An image network; `extra` is its configuration."""

    def build() -> torch.nn.Module:
        return getattr(hf, f"{kind}{head}")(getattr(hf, f"{kind}Config")(**extra))  # type: ignore[no-any-return]

    return Family(build, image_feeds(side), {"pixel_values": IMAGE}, pick)


def vit(kind: str, head: str = "Model", **extra: Any) -> Family:
    """A plain vision transformer on 32x32 images in 8x8 patches."""
    return vision(kind, head, **{**widths(), "image_size": 32, "patch_size": 8, "num_labels": 7, **extra})


SEQ2SEQ = {**MASKED_TEXT, "decoder_input_ids": {0: "batch", 1: "target"}}
T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "use_cache": False,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
GQA = {"num_key_value_heads": 2}

"""Encoder-decoders, and networks of texts and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from family import (
    BART,
    IMAGE,
    MASKED_TEXT,
    SEQ2SEQ,
    SEQUENCE,
    T5,
    VOCABULARY,
    Family,
    Feeds,
    encoder,
    pair_feeds,
    text_feeds,
    widths,
)
from models import smooth_images

_TOWER: dict[str, Any] = {
    **widths(),
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_EYES: dict[str, Any] = {**widths(), "image_size": 32, "patch_size": 8}
_CAPTIONS = {**MASKED_TEXT, "pixel_values": IMAGE}


def _captions(count: int, rng: np.random.Generator) -> Feeds:
    return {**text_feeds(count, rng), "pixel_values": smooth_images(rng, count, 32)}


def _towers(kind: str, **text: Any) -> Family:
    """One encoder of images, one of texts, and their products."""

    def build() -> torch.nn.Module:
        config = getattr(hf, f"{kind}Config")
        projection = {} if kind == "Siglip" else {"projection_dim": 32}
        return getattr(hf, f"{kind}Model")(  # type: ignore[no-any-return]
            config(text_config={**_TOWER, **text}, vision_config=_EYES, **projection)
        )

    return Family(build, _captions, _CAPTIONS, "logits_per_image")


def _translator(kind: str, head: str, **extra: Any) -> Family:
    """An encoder and a decoder that attends to it."""
    sizes = {**BART, "pad_token_id": 0, "decoder_start_token_id": 0, **extra}
    return Family(
        lambda: getattr(hf, f"{kind}{head}")(getattr(hf, f"{kind}Config")(**sizes)), pair_feeds, SEQ2SEQ
    )


FAMILIES: dict[str, Family] = {
    "bart-classifier": Family(
        lambda: hf.BartForSequenceClassification(hf.BartConfig(**BART, num_labels=3)), text_feeds, MASKED_TEXT
    ),
    "t5": Family(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), pair_feeds, SEQ2SEQ),
    "flan-t5": Family(
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        ),
        pair_feeds,
        SEQ2SEQ,
    ),
    "switch-encoder": Family(
        lambda: hf.SwitchTransformersEncoderModel(
            hf.SwitchTransformersConfig(**T5, num_experts=4, num_sparse_encoder_layers=1, expert_capacity=10)
        ),
        text_feeds,
        MASKED_TEXT,
    ),
    "t5-encoder": Family(lambda: hf.T5EncoderModel(hf.T5Config(**T5)), text_feeds, MASKED_TEXT),
    "bart": Family(lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), pair_feeds, SEQ2SEQ),
    "marian": Family(
        lambda: hf.MarianMTModel(hf.MarianConfig(**BART, pad_token_id=0, decoder_start_token_id=0)),
        pair_feeds,
        SEQ2SEQ,
    ),
    "clip-text": encoder(
        "CLIPText", "ModelWithProjection", projection_dim=32, eos_token_id=2, bos_token_id=0, pad_token_id=1
    ),
    "siglip-text": encoder("SiglipText", projection_size=32),
    "pegasus": _translator("Pegasus", "ForConditionalGeneration"),
    "mvp-prompts": _translator(
        "Mvp", "ForConditionalGeneration", pad_token_id=1, use_prompt=True, prompt_length=4, prompt_mid_dim=16
    ),
    "mbart": _translator("MBart", "ForConditionalGeneration", pad_token_id=1),
    "m2m100": _translator("M2M100", "ForConditionalGeneration", pad_token_id=1),
    "blenderbot": _translator("Blenderbot", "ForConditionalGeneration"),
    "clip": _towers("CLIP"),
    "siglip": _towers("Siglip", projection_size=64),
    "chinese-clip": _towers("ChineseCLIP"),
    "altclip": _towers("AltCLIP", project_dim=32),
    "git": Family(
        lambda: hf.GitModel(hf.GitConfig(**_TOWER, vision_config=_EYES, use_cache=False)),
        _captions,
        _CAPTIONS,
    ),
    "perceiver": Family(
        lambda: hf.PerceiverForMaskedLM(
            hf.PerceiverConfig(
                num_latents=8,
                d_latents=64,
                d_model=64,
                num_blocks=1,
                num_self_attends_per_block=2,
                num_self_attention_heads=4,
                num_cross_attention_heads=4,
                qk_channels=64,
                v_channels=64,
                vocab_size=VOCABULARY,
                max_position_embeddings=SEQUENCE,
            )
        ),
        lambda n, rng: {"inputs": rng.integers(3, VOCABULARY, size=(n, SEQUENCE))},
        {"inputs": IMAGE},
    ),
}

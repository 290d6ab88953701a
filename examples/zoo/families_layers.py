"""Networks made of torch's own layers, and attention as people write it by hand."""

from __future__ import annotations

import numpy as np
from family import IMAGE, SEQUENCE, TEXT, VOCABULARY, Family, Feeds, id_feeds, image_feeds
from networks_attention import FORMS, Decoder, EinsumAttention, Encoder, SetTransformer
from networks_mixing import (
    CHOICES,
    ChannelAttention,
    Experts,
    GatheredExperts,
    ImageTokens,
    LinearVision,
    Messages,
    Retention,
)
from networks_products import KERNELS, Boxes, GatedMlp, Interactions, KernelAttention, StarNet

_TOKENS = {"x": TEXT}
_PIXELS = {"pixel_values": IMAGE}
_CLICKS = {"categories": IMAGE, "numbers": IMAGE}

CHANNELS = np.exp(0.3 * np.random.default_rng(5).normal(size=64))


def _tokens(count: int, rng: np.random.Generator) -> Feeds:
    """Rows with uneven channels."""
    x = rng.normal(size=(count, SEQUENCE, 64)) * CHANNELS
    return {"x": x.astype(np.float32)}


def _padded(count: int, rng: np.random.Generator) -> Feeds:
    lengths = rng.integers(SEQUENCE // 4, SEQUENCE + 1, size=count)
    return {**_tokens(count, rng), "mask": np.arange(SEQUENCE)[None] >= lengths[:, None]}


def _with_image(count: int, rng: np.random.Generator) -> Feeds:
    """Six tokens of every text stand for an image."""
    feeds = id_feeds(count, rng)
    feeds["input_ids"][:, 3:9] = 1
    return {**feeds, "features": rng.normal(size=(count, 6, 32)).astype(np.float32)}


def _clicks(count: int, rng: np.random.Generator) -> Feeds:
    categories = np.stack([rng.integers(0, rows, count) for rows in (20, 30, 40)], axis=1)
    return {"categories": categories, "numbers": rng.normal(size=(count, 6)).astype(np.float32)}


def _graphs(count: int, rng: np.random.Generator) -> Feeds:
    """Graphs of 12 nodes and 30 edges."""
    nodes = rng.normal(size=(count, 12, 16)).astype(np.float32)
    return {"x": nodes, "edges": rng.integers(0, 12, size=(count, 2, 30))}


FAMILIES: dict[str, Family] = {
    "transformer-encoder": Family(lambda: Encoder(first=True), _tokens, _TOKENS),
    "transformer-encoder-mask": Family(lambda: Encoder(first=True), _padded, {**_TOKENS, "mask": TEXT}),
    "transformer-encoder-sequence-first": Family(lambda: Encoder(first=False), _tokens, _TOKENS),
    "transformer-decoder": Family(
        lambda: Decoder(),
        lambda n, rng: {**_tokens(n, rng), "y": rng.normal(size=(n, 12, 64)).astype(np.float32)},
        {"x": IMAGE, "y": IMAGE},
    ),
    "set-transformer": Family(lambda: SetTransformer(), _tokens, _TOKENS),
    **{f"attention-{form}": Family(lambda f=form: EinsumAttention(f), _tokens, _TOKENS) for form in FORMS},
    **{
        f"experts-{form}": Family(lambda f=form: Experts(f, VOCABULARY), id_feeds, {"input_ids": TEXT})
        for form in CHOICES
    },
    **{
        f"experts-{form}": Family(lambda k=k: GatheredExperts(k, VOCABULARY), id_feeds, {"input_ids": TEXT})
        for form, k in (("gathered", 2), ("written", 1))
    },
    "image-tokens": Family(
        lambda: ImageTokens(VOCABULARY, 1), _with_image, {"input_ids": TEXT, "features": IMAGE}
    ),
    "xcit": Family(lambda: ChannelAttention(), image_feeds(32), _PIXELS),
    "efficientvit-mit": Family(lambda: LinearVision(), image_feeds(32), _PIXELS),
    "gmlp": Family(lambda: GatedMlp(SEQUENCE), _tokens, {"x": IMAGE}),
    "starnet": Family(lambda: StarNet(), image_feeds(64), _PIXELS),
    **{f"attention-{kind}": Family(lambda k=kind: KernelAttention(k), _tokens, _TOKENS) for kind in KERNELS},
    "boxes": Family(lambda: Boxes(), image_feeds(64), _PIXELS),
    "deepfm": Family(lambda: Interactions(dots=False), _clicks, _CLICKS),
    "dlrm": Family(lambda: Interactions(dots=True), _clicks, _CLICKS),
    "retnet": Family(lambda: Retention(), _tokens, _TOKENS),
    **{
        f"graph-{name}": Family(lambda r=r: Messages(r), _graphs, {"x": IMAGE, "edges": IMAGE})
        for name, r in (("sums", "sum"), ("maxima", "amax"))
    },
    "attention-windows": Family(lambda: EinsumAttention("windows"), _tokens, {"x": IMAGE}),
}

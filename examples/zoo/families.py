"""One small, random-weight member of every family of transformers (and convolutional networks) people export.

A new family is one more entry of `ZOO`. Weights are lively (see `examples/models.py`): activations, attention
maps and outputs stay spread out, with uneven channel norms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from networks import Embedder, MaskTransformer, Mixer, MobileNet
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1]))
from models import enliven, smooth_images

Feeds = dict[str, NDArray[Any]]
VOCABULARY = 100
SEQUENCE = 24
TEXT = {0: "batch", 1: "sequence"}
IMAGE = {0: "batch"}


@dataclass(frozen=True)
class Family:
    """`build` makes the network, `feeds(count, rng)` its inputs, `axes` names the dynamic axes of each input.

    `pick` is the output that is exported (default: the first tensor).
    """

    build: Callable[[], torch.nn.Module]
    feeds: Callable[[int, np.random.Generator], Feeds]
    axes: dict[str, dict[int, str]]
    pick: str = ""


def network(name: str) -> torch.nn.Module:
    """The network of family `name` in evaluation mode, seeded and lively."""
    torch.manual_seed(0)
    model = ZOO[name].build()
    enliven(model, 0)
    _settle(model, ZOO[name].feeds(32, np.random.default_rng(7)))
    return model.eval()


def _settle(model: torch.nn.Module, feeds: Feeds) -> None:
    """Batch normalisation learns the size of its inputs.

    Not their means: what a random network does with all inputs alike would be taken away, and the small
    differences that are left amplified, noise included, at every layer.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    if norms:
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
        model.train()
        with torch.no_grad():
            model(**{k: torch.from_numpy(v) for k, v in feeds.items()})
        for norm in norms:
            norm.running_var += norm.running_mean**2
            norm.running_mean.zero_()


def _ids(count: int, rng: np.random.Generator) -> Feeds:
    return {"input_ids": rng.integers(3, VOCABULARY, size=(count, SEQUENCE))}


def _text(count: int, rng: np.random.Generator) -> Feeds:
    lengths = rng.integers(SEQUENCE // 4, SEQUENCE + 1, size=count)
    mask = (np.arange(SEQUENCE)[None, :] < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(3, VOCABULARY, size=(count, SEQUENCE)), 1)
    ids[np.arange(count), lengths - 1] = 2  # the end-of-text token
    return {"input_ids": ids, "attention_mask": mask}


def _pairs(count: int, rng: np.random.Generator) -> Feeds:
    return {**_text(count, rng), "decoder_input_ids": rng.integers(3, VOCABULARY, size=(count, 12))}


def _images(side: int) -> Callable[[int, np.random.Generator], Feeds]:
    return lambda count, rng: {"pixel_values": smooth_images(rng, count, side)}


def _wave(count: int, rng: np.random.Generator) -> Feeds:
    time = np.arange(1600) / 1600
    tones = rng.uniform(5, 200, size=(count, 4, 1))
    wave = (np.sin(2 * np.pi * tones * time) * rng.normal(size=(count, 4, 1))).sum(axis=1)
    return {"input_values": (wave / wave.std(axis=1, keepdims=True)).astype(np.float32)}


def _mel(name: str, shape: tuple[int, int]) -> Callable[[int, np.random.Generator], Feeds]:
    def feeds(count: int, rng: np.random.Generator) -> Feeds:
        side = 32 * -(-max(shape) // 32)
        return {name: smooth_images(rng, count, side)[:, 0, : shape[0], : shape[1]].copy()}

    return feeds


def _sizes(width: int = 64) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
    }


def _encoder(kind: str, head: str = "Model", **extra: Any) -> Family:
    """A text encoder with a padding mask; `extra` overrides its configuration."""

    def build() -> torch.nn.Module:
        sizes = {**_sizes(), "vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 7}
        config = getattr(hf, f"{kind}Config")(**{**sizes, **extra})
        return getattr(hf, f"{kind}{head}")(config)  # type: ignore[no-any-return]

    return Family(build, _text, {"input_ids": TEXT, "attention_mask": TEXT})


def _decoder(kind: str, masked: bool = False, **extra: Any) -> Family:
    """A causal language model."""

    def build() -> torch.nn.Module:
        sizes = {
            **_sizes(),
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        config = getattr(hf, f"{kind}Config")(**{**sizes, **extra})
        return getattr(hf, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)  # type: ignore[no-any-return]

    axes = {"input_ids": TEXT, "attention_mask": TEXT} if masked else {"input_ids": TEXT}
    return Family(build, _text if masked else _ids, axes)


def _vision(kind: str, head: str = "Model", side: int = 32, pick: str = "", **extra: Any) -> Family:
    """An image network; `extra` is its configuration."""

    def build() -> torch.nn.Module:
        return getattr(hf, f"{kind}{head}")(getattr(hf, f"{kind}Config")(**extra))  # type: ignore[no-any-return]

    return Family(build, _images(side), {"pixel_values": IMAGE}, pick)


def _vit(kind: str, head: str = "Model", **extra: Any) -> Family:
    """A plain vision transformer on 32x32 images in 8x8 patches."""
    return _vision(kind, head, **{**_sizes(), "image_size": 32, "patch_size": 8, "num_labels": 7, **extra})


def _own(build: Callable[[], torch.nn.Module], feeds: Any, axes: dict[str, dict[int, str]]) -> Family:
    return Family(build, feeds, axes)


def _bert(head: str) -> torch.nn.Module:
    config = hf.BertConfig(**_sizes(), vocab_size=VOCABULARY, max_position_embeddings=64)
    return Embedder(hf.BertModel(config), head)


_SEQ2SEQ = {"input_ids": TEXT, "attention_mask": TEXT, "decoder_input_ids": {0: "batch", 1: "target"}}
_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
_BART = {
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
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GQA = {"num_key_value_heads": 2}

ZOO: dict[str, Family] = {
    # text encoders
    "bert": _encoder("Bert", "ForSequenceClassification"),
    "bert-tokens": _encoder("Bert", "ForTokenClassification", attn_implementation="eager"),
    "bert-embedding": _own(lambda: _bert("mean"), _text, {"input_ids": TEXT, "attention_mask": TEXT}),
    "bert-normalised": _own(lambda: _bert("normalised"), _text, {"input_ids": TEXT, "attention_mask": TEXT}),
    "roberta": _encoder("Roberta", "ForSequenceClassification", pad_token_id=1),
    "distilbert": _encoder(
        "DistilBert", "ForSequenceClassification", dim=64, n_layers=2, n_heads=4, hidden_dim=128
    ),
    "electra": _encoder("Electra", embedding_size=32),
    "albert": _encoder("Albert", embedding_size=32),
    "mpnet": _encoder("MPNet"),
    "deberta": _encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16
    ),
    "deberta-v1": _encoder(
        "Deberta", relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=16
    ),
    "roformer": _encoder("RoFormer", "Model"),
    "modernbert": _encoder(
        "ModernBert", "ForSequenceClassification", pad_token_id=0, cls_token_id=1, sep_token_id=2
    ),
    "nomic": _encoder("NomicBert"),
    "esm": _encoder("Esm", pad_token_id=1, mask_token_id=2, position_embedding_type="rotary"),
    "squeezebert": _encoder(
        "SqueezeBert",
        embedding_size=64,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=1,
        intermediate_groups=2,
        output_groups=2,
    ),
    # vision transformers
    "vit": _vit("ViT", "ForImageClassification"),
    "deit": _vit("DeiT", "ForImageClassification"),
    "beit": _vit(
        "Beit", "ForImageClassification", use_relative_position_bias=True, layer_scale_init_value=0.5
    ),
    "dinov2": _vit("Dinov2", "ForImageClassification", mlp_ratio=2),
    "dinov2-swiglu": _vit("Dinov2", mlp_ratio=2, use_swiglu_ffn=True),
    "dinov3": _vit("DINOv3ViT"),
    "clip-vision": _vit("CLIPVision", "ModelWithProjection", projection_dim=32),
    "siglip-vision": _vit("SiglipVision"),
    "swin": _vision(
        "Swin",
        "ForImageClassification",
        image_size=32,
        patch_size=2,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=7,
    ),
    "swinv2": _vision(
        "Swinv2",
        "ForImageClassification",
        image_size=32,
        patch_size=2,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=7,
    ),
    "pvt": _vision(
        "Pvt",
        "ForImageClassification",
        image_size=32,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_labels=7,
        num_attention_heads=[1, 2],
        num_encoder_blocks=2,
        mlp_ratios=[2, 2],
        sequence_reduction_ratios=[2, 1],
        patch_sizes=[4, 2],
        strides=[4, 2],
    ),
    "levit": _vision(
        "Levit",
        "ForImageClassification",
        side=64,
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=7,
        down_ops=[["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]],
    ),
    "mobilevit": _vision(
        "MobileViT",
        "ForImageClassification",
        side=64,
        image_size=64,
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 128],
        num_labels=7,
    ),
    "mixer": _own(lambda: Mixer(), _images(32), {"pixel_values": IMAGE}),
    "poolformer": _vision(
        "PoolFormer",
        "ForImageClassification",
        num_labels=7,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
    ),
    "convnext": _vision(
        "ConvNext", "ForImageClassification", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_labels=7
    ),
    # segmentation
    "segmenter": _own(lambda: MaskTransformer(), _images(32), {"pixel_values": IMAGE}),
    "segformer": _vision(
        "Segformer",
        "ForSemanticSegmentation",
        side=64,
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        num_labels=5,
        num_attention_heads=[1, 2, 4, 8],
    ),
    "yolos": _vit(
        "Yolos", "ForObjectDetection", image_size=[32, 32], num_detection_tokens=5, pick="pred_boxes"
    ),
    # convolutional networks
    "resnet-basic": _vision(
        "ResNet",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        num_labels=7,
    ),
    "resnet-bottleneck": _vision(
        "ResNet",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_labels=7,
    ),
    "mobilenet": _own(lambda: MobileNet(), _images(32), {"pixel_values": IMAGE}),
    "mobilenetv2": _vision(
        "MobileNetV2", "ForImageClassification", image_size=64, side=64, depth_multiplier=0.35, num_labels=7
    ),
    "regnet": _vision(
        "RegNet",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        groups_width=8,
        num_labels=7,
    ),
    # audio
    "whisper": Family(
        lambda: hf.WhisperModel(
            hf.WhisperConfig(
                **{
                    **_BART,
                    "num_mel_bins": 16,
                    "max_source_positions": 24,
                    "max_target_positions": 64,
                    "pad_token_id": 1,
                    "decoder_start_token_id": 1,
                }
            )
        ),
        lambda n, rng: {
            **_mel("input_features", (16, 48))(n, rng),
            "decoder_input_ids": rng.integers(3, VOCABULARY, size=(n, 12)),
        },
        {"input_features": IMAGE, "decoder_input_ids": {0: "batch", 1: "target"}},
    ),
    "wav2vec2": Family(
        lambda: hf.Wav2Vec2Model(
            hf.Wav2Vec2Config(
                **_sizes(),
                conv_dim=[32, 32, 32],
                conv_stride=[5, 4, 2],
                conv_kernel=[10, 4, 3],
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
            )
        ),
        _wave,
        {"input_values": IMAGE},
    ),
    "wav2vec2-layer": Family(
        lambda: hf.Wav2Vec2Model(
            hf.Wav2Vec2Config(
                **_sizes(),
                conv_dim=[32, 32, 32],
                conv_stride=[5, 4, 2],
                conv_kernel=[10, 4, 3],
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
            )
        ),
        _wave,
        {"input_values": IMAGE},
    ),
    "ast": Family(
        lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(**_sizes(), max_length=64, num_mel_bins=32, num_labels=7)
        ),
        _mel("input_values", (64, 32)),
        {"input_values": IMAGE},
    ),
    # decoders
    "gpt2": _decoder("GPT2", **_GPT2),
    "gpt2-masked": _decoder("GPT2", masked=True, **_GPT2),
    "opt": _decoder("OPT", word_embed_proj_dim=64, ffn_dim=128),
    "gpt-neox": _decoder("GPTNeoX"),
    "llama": _decoder("Llama", **_GQA),
    "llama-masked": _decoder("Llama", masked=True, **_GQA),
    "mistral": _decoder("Mistral", **_GQA, sliding_window=8),
    "qwen2": _decoder("Qwen2", **_GQA),
    "qwen3": _decoder("Qwen3", **_GQA, head_dim=16),
    "gemma": _decoder("Gemma", num_key_value_heads=1, head_dim=16),
    "gemma2": _decoder("Gemma2", **_GQA, head_dim=16, sliding_window=8),
    "phi": _decoder("Phi"),
    "bloom": _decoder("Bloom", n_head=4, n_layer=2),
    "falcon": _decoder("Falcon", new_decoder_architecture=False, multi_query=True, alibi=False),
    "mpt": _decoder("Mpt", d_model=64, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64),
    "olmo2": _decoder("Olmo2"),
    "stablelm": _decoder("StableLm", num_key_value_heads=2),
    "codegen": _decoder("CodeGen", n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8),
    # encoder-decoders and two towers
    "t5": Family(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)), _pairs, _SEQ2SEQ),
    "flan-t5": Family(
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        ),
        _pairs,
        _SEQ2SEQ,
    ),
    "t5-encoder": Family(
        lambda: hf.T5EncoderModel(hf.T5Config(**_T5)), _text, {"input_ids": TEXT, "attention_mask": TEXT}
    ),
    "bart": Family(lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_BART)), _pairs, _SEQ2SEQ),
    "marian": Family(
        lambda: hf.MarianMTModel(hf.MarianConfig(**_BART, pad_token_id=0, decoder_start_token_id=0)),
        _pairs,
        _SEQ2SEQ,
    ),
    "clip-text": _encoder(
        "CLIPText", "ModelWithProjection", projection_dim=32, eos_token_id=2, bos_token_id=0, pad_token_id=1
    ),
    "siglip-text": _encoder("SiglipText", projection_size=32),
}

"""Text encoders."""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf
from family import (
    IMAGE,
    MASKED_TEXT,
    SEQUENCE,
    TEXT,
    VOCABULARY,
    Family,
    Feeds,
    encoder,
    id_feeds,
    text_feeds,
    widths,
)
from networks import Embedder


def _bert(head: str) -> torch.nn.Module:
    config = hf.BertConfig(**widths(), vocab_size=VOCABULARY, max_position_embeddings=64)
    return Embedder(hf.BertModel(config), head)


def _boxes(count: int, rng: np.random.Generator) -> Feeds:
    """Tokens and where they stand on the page: left, top, right, bottom."""
    corners = np.sort(rng.integers(0, 60, size=(count, SEQUENCE, 2, 2)), axis=2)
    return {**text_feeds(count, rng), "bbox": corners.reshape(count, SEQUENCE, 4)}


FAMILIES: dict[str, Family] = {
    "fnet": Family(
        lambda: hf.FNetModel(hf.FNetConfig(**widths(), vocab_size=VOCABULARY, max_position_embeddings=64)),
        id_feeds,
        {"input_ids": IMAGE},
    ),
    "bert": encoder("Bert", "ForSequenceClassification"),
    "bert-tokens": encoder("Bert", "ForTokenClassification", attn_implementation="eager"),
    "bert-embedding": Family(lambda: _bert("mean"), text_feeds, MASKED_TEXT),
    "bert-normalised": Family(lambda: _bert("normalised"), text_feeds, MASKED_TEXT),
    "roberta": encoder("Roberta", "ForSequenceClassification", pad_token_id=1),
    "distilbert": encoder(
        "DistilBert", "ForSequenceClassification", dim=64, n_layers=2, n_heads=4, hidden_dim=128
    ),
    "electra": encoder("Electra", embedding_size=32),
    "albert": encoder("Albert", embedding_size=32),
    "mpnet": encoder("MPNet"),
    "deberta": encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16
    ),
    "deberta-v1": encoder(
        "Deberta", relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=16
    ),
    "roformer": encoder("RoFormer", "Model"),
    "modernbert": encoder(
        "ModernBert", "ForSequenceClassification", pad_token_id=0, cls_token_id=1, sep_token_id=2
    ),
    "nomic": encoder("NomicBert"),
    "esm": encoder("Esm", pad_token_id=1, mask_token_id=2, position_embedding_type="rotary"),
    "squeezebert": encoder(
        "SqueezeBert",
        embedding_size=64,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=1,
        intermediate_groups=2,
        output_groups=2,
    ),
    "xlm": encoder("XLM", emb_dim=64, n_layers=2, n_heads=4, n_langs=1, pad_index=1),
    "convbert": encoder("ConvBert", embedding_size=64, conv_kernel_size=5, num_groups=1),
    "mobilebert": encoder(
        "MobileBert",
        embedding_size=32,
        intra_bottleneck_size=32,
        true_hidden_size=32,
        num_feedforward_networks=2,
    ),
    "rembert": encoder("RemBert", input_embedding_size=32, output_embedding_size=64),
    "megatron-bert": encoder("MegatronBert"),
    "luke": encoder("Luke", entity_vocab_size=20, entity_emb_size=32, pad_token_id=1),
    "layoutlm": Family(
        lambda: hf.LayoutLMModel(
            hf.LayoutLMConfig(
                **widths(), vocab_size=VOCABULARY, max_position_embeddings=64, max_2d_position_embeddings=64
            )
        ),
        _boxes,
        {**MASKED_TEXT, "bbox": TEXT},
    ),
    "nystromformer": encoder("Nystromformer", num_landmarks=24, segment_means_seq_len=24, conv_kernel_size=5),
    "bigbird": encoder("BigBird", attention_type="original_full", pad_token_id=0),
    "esm-absolute": encoder(
        "Esm", pad_token_id=1, mask_token_id=2, position_embedding_type="absolute", token_dropout=True
    ),
    "deberta-conv": encoder(
        "DebertaV2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
        conv_act="gelu",
    ),
    "roc-bert": encoder("RoCBert", enable_pronunciation=False, enable_shape=False),
    "xlnet": Family(
        lambda: hf.XLNetModel(
            hf.XLNetConfig(vocab_size=VOCABULARY, d_model=64, n_layer=2, n_head=4, d_inner=128)
        ),
        text_feeds,
        MASKED_TEXT,
    ),
    "funnel": Family(
        lambda: hf.FunnelBaseModel(
            hf.FunnelConfig(
                vocab_size=VOCABULARY, block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=128
            )
        ),
        text_feeds,
        {"input_ids": IMAGE, "attention_mask": IMAGE},
    ),
    "ibert": encoder("IBert", pad_token_id=1, quant_mode=False),
}

"""Speech and audio."""

from __future__ import annotations

from typing import Any

import transformers as hf
from family import BART, IMAGE, VOCABULARY, Family, mel_feeds, wave_feeds, widths


def _waves(kind: str, **extra: Any) -> Family:
    """A transformer on convolutional features of a wave."""
    sizes: dict[str, Any] = {
        **widths(),
        "vocab_size": 30,
        "conv_dim": [32, 32, 32],
        "conv_stride": [5, 4, 2],
        "conv_kernel": [10, 4, 3],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    return Family(
        lambda: getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**{**sizes, **extra})),
        wave_feeds,
        {"input_values": IMAGE},
    )


FAMILIES: dict[str, Family] = {
    "whisper": Family(
        lambda: hf.WhisperModel(
            hf.WhisperConfig(
                **{
                    **BART,
                    "num_mel_bins": 16,
                    "max_source_positions": 24,
                    "max_target_positions": 64,
                    "pad_token_id": 1,
                    "decoder_start_token_id": 1,
                }
            )
        ),
        lambda n, rng: {
            **mel_feeds("input_features", (16, 48))(n, rng),
            "decoder_input_ids": rng.integers(3, VOCABULARY, size=(n, 12)),
        },
        {"input_features": IMAGE, "decoder_input_ids": {0: "batch", 1: "target"}},
    ),
    "wav2vec2": _waves("Wav2Vec2"),
    "wav2vec2-layer": _waves("Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True),
    "ast": Family(
        lambda: hf.ASTForAudioClassification(
            hf.ASTConfig(**widths(), max_length=64, num_mel_bins=32, num_labels=7)
        ),
        mel_feeds("input_values", (64, 32)),
        {"input_values": IMAGE},
    ),
    "hubert": _waves("Hubert"),
    "wavlm": _waves("WavLM", num_buckets=16, max_bucket_distance=32),
    "unispeech": _waves("UniSpeech"),
    "sew": _waves("SEW", squeeze_factor=2),
    "sew-d": _waves(
        "SEWD",
        squeeze_factor=2,
        position_buckets=16,
        max_position_embeddings=64,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
    ),
    "data2vec-audio": _waves(
        "Data2VecAudio", num_conv_pos_embeddings=2, conv_pos_kernel_size=5, pad_token_id=1
    ),
    "wav2vec2-conformer": _waves(
        "Wav2Vec2Conformer", position_embeddings_type="relative", conv_depthwise_kernel_size=7
    ),
    "wav2vec2-bert": Family(
        lambda: hf.Wav2Vec2BertModel(
            hf.Wav2Vec2BertConfig(
                **widths(),
                feature_projection_input_dim=32,
                conv_depthwise_kernel_size=7,
                left_max_position_embeddings=8,
                right_max_position_embeddings=4,
            )
        ),
        mel_feeds("input_features", (24, 32)),
        {"input_features": IMAGE},
    ),
    "speech2text": Family(
        lambda: hf.Speech2TextModel(
            hf.Speech2TextConfig(
                **BART,
                input_feat_per_channel=16,
                num_conv_layers=2,
                conv_channels=32,
                conv_kernel_sizes=[5, 5],
                max_source_positions=64,
                max_target_positions=64,
                pad_token_id=1,
            )
        ),
        lambda n, rng: {
            **mel_feeds("input_features", (48, 16))(n, rng),
            "decoder_input_ids": rng.integers(3, VOCABULARY, size=(n, 12)),
        },
        {"input_features": IMAGE, "decoder_input_ids": {0: "batch", 1: "target"}},
    ),
}

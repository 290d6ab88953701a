"""Vision transformers, and what is built on them: segmentation, depth, detection, video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from family import IMAGE, Family, Feeds, image_feeds, vision, vit, widths
from models import smooth_images
from networks import MaskTransformer, Mixer


def _detr(kind: str) -> torch.nn.Module:
    """Boxes by queries, behind a small residual network."""
    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = getattr(hf, f"{kind}Config")(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=6,
        num_labels=5,
    )
    return getattr(hf, f"{kind}ForObjectDetection")(config)  # type: ignore[no-any-return]


def _frames(count: int, rng: np.random.Generator) -> Feeds:
    return {"pixel_values": np.stack([smooth_images(rng, 4, 32) for _ in range(count)])}


def _video(kind: str, head: str, **extra: Any) -> Family:
    """A video transformer on four frames of 32x32."""
    made = vision(kind, head, **widths(), image_size=32, num_frames=4, num_labels=7, **extra)
    return Family(made.build, _frames, {"pixel_values": IMAGE})


FAMILIES: dict[str, Family] = {
    "groupvit": vision(
        "GroupViTVision",
        image_size=32,
        patch_size=8,
        hidden_size=64,
        depths=[1, 1, 1],
        num_hidden_layers=3,
        num_group_tokens=[8, 4, 0],
        num_output_groups=[8, 4, 0],
        num_attention_heads=4,
        intermediate_size=128,
    ),
    "vit": vit("ViT", "ForImageClassification"),
    "deit": vit("DeiT", "ForImageClassification"),
    "beit": vit(
        "Beit", "ForImageClassification", use_relative_position_bias=True, layer_scale_init_value=0.5
    ),
    "dinov2": vit("Dinov2", "ForImageClassification", mlp_ratio=2),
    "dinov2-swiglu": vit("Dinov2", mlp_ratio=2, use_swiglu_ffn=True),
    "dinov3": vit("DINOv3ViT"),
    "clip-vision": vit("CLIPVision", "ModelWithProjection", projection_dim=32),
    "siglip-vision": vit("SiglipVision"),
    "swin": vision(
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
    "swinv2": vision(
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
    "pvt": vision(
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
    "levit": vision(
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
    "mobilevit": vision(
        "MobileViT",
        "ForImageClassification",
        side=64,
        image_size=64,
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 128],
        num_labels=7,
    ),
    "mixer": Family(lambda: Mixer(), image_feeds(32), {"pixel_values": IMAGE}),
    "poolformer": vision(
        "PoolFormer",
        "ForImageClassification",
        num_labels=7,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
    ),
    "convnext": vision(
        "ConvNext", "ForImageClassification", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_labels=7
    ),
    "segmenter": Family(lambda: MaskTransformer(), image_feeds(32), {"pixel_values": IMAGE}),
    "segformer": vision(
        "Segformer",
        "ForSemanticSegmentation",
        side=64,
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        num_labels=5,
        num_attention_heads=[1, 2, 4, 8],
    ),
    "yolos": vit(
        "Yolos", "ForObjectDetection", image_size=[32, 32], num_detection_tokens=5, pick="pred_boxes"
    ),
    "hiera": vision(
        "Hiera",
        "ForImageClassification",
        side=64,
        image_size=[64, 64],
        embed_dim=32,
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        num_query_pool=2,
        masked_unit_size=[4, 4],
        num_labels=7,
    ),
    "pvtv2": vision(
        "PvtV2",
        "ForImageClassification",
        side=64,
        image_size=64,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 8],
        sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[2, 2, 2, 2],
        num_labels=7,
    ),
    "swiftformer": vision(
        "SwiftFormer",
        "ForImageClassification",
        side=64,
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[16, 32, 48, 64],
        num_labels=7,
    ),
    "swin2sr": vision(
        "Swin2SR",
        "ForImageSuperResolution",
        side=16,
        image_size=16,
        patch_size=1,
        embed_dim=32,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        upscale=2,
    ),
    "data2vec-vision": vit(
        "Data2VecVision",
        "ForImageClassification",
        use_relative_position_bias=True,
        layer_scale_init_value=0.5,
    ),
    "ijepa": vit("IJepa"),
    "aimv2": vit("Aimv2Vision"),
    "blip-vision": vit("BlipVision"),
    "vitdet": vision(
        "VitDet",
        side=64,
        image_size=64,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        window_block_indices=[0],
        window_size=4,
        use_relative_position_embeddings=True,
        residual_block_indices=[1],
    ),
    "sam-vision": vision(
        "SamVision",
        side=64,
        image_size=64,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_dim=128,
        output_channels=32,
        window_size=4,
        global_attn_indexes=[1],
    ),
    # depth and detection
    "dpt": vision(
        "DPT",
        "ForDepthEstimation",
        side=64,
        **{**widths(), "num_hidden_layers": 4},
        image_size=64,
        patch_size=16,
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=False,
    ),
    "glpn": vision(
        "GLPN",
        "ForDepthEstimation",
        side=64,
        hidden_sizes=[16, 32, 40, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        num_attention_heads=[1, 2, 4, 8],
    ),
    "detr": Family(lambda: _detr("Detr"), image_feeds(64), {"pixel_values": IMAGE}, "logits"),
    "conditional-detr": Family(
        lambda: _detr("ConditionalDetr"), image_feeds(64), {"pixel_values": IMAGE}, "logits"
    ),
    # video
    "timesformer": _video("Timesformer", "ForVideoClassification", patch_size=8),
    "videomae": _video("VideoMAE", "ForVideoClassification", patch_size=8, tubelet_size=2),
    "vivit": _video("Vivit", "ForVideoClassification", tubelet_size=[2, 8, 8]),
}

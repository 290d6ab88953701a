"""Convolutional networks."""

from __future__ import annotations

from family import IMAGE, Family, image_feeds, vision
from networks import MobileNet

FAMILIES: dict[str, Family] = {
    "resnet-basic": vision(
        "ResNet",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        num_labels=7,
    ),
    "resnet-bottleneck": vision(
        "ResNet",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_labels=7,
    ),
    "mobilenet": Family(lambda: MobileNet(), image_feeds(32), {"pixel_values": IMAGE}),
    "mobilenetv2": vision(
        "MobileNetV2", "ForImageClassification", image_size=64, side=64, depth_multiplier=0.35, num_labels=7
    ),
    "regnet": vision(
        "RegNet",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        groups_width=8,
        num_labels=7,
    ),
    "convnextv2": vision(
        "ConvNextV2",
        "ForImageClassification",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 2, 1],
        num_labels=7,
    ),
    "mobilenetv1": vision(
        "MobileNetV1", "ForImageClassification", image_size=64, side=64, depth_multiplier=0.25, num_labels=7
    ),
    "bit": vision(
        "Bit",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_groups=8,
        num_labels=7,
    ),
    "hgnetv2": vision(
        "HGNetV2",
        "ForImageClassification",
        side=64,
        embedding_size=16,
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 48, 64, 64],
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 32, 48, 64],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[32, 48, 64, 64],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[2, 2, 2, 2],
        num_labels=7,
    ),
    "focalnet": vision(
        "FocalNet",
        "ForImageClassification",
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        hidden_sizes=[32, 64],
        num_labels=7,
    ),
}

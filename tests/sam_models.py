"""Small random SAM 2 and SAM 3 video models, and a tokenizer for the latter."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Sam2VideoConfig, Sam2VideoModel, Sam3VideoConfig, Sam3VideoModel

WIDTH = 128  # the smallest that these classes allow: object pointers are split into memory tokens of 64
_MEMORY = {
    "memory_attention_hidden_size": WIDTH,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_encoder_hidden_size": WIDTH,
    "memory_encoder_output_channels": 64,
    "mask_downsampler_embed_dim": WIDTH,
    "memory_fuser_embed_dim": WIDTH,
    "memory_fuser_intermediate_dim": 32,
    "memory_fuser_num_layers": 1,
}
_DECODER = {"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def small_sam2() -> Sam2VideoModel:
    """64 x 64 pixels; always sure that its object is there."""
    config = Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "num_attention_heads": 1,
                "image_size": [64, 64],
                "blocks_per_stage": [1, 2, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [4, 2, 4, 2],
                "window_positional_embedding_background_size": [2, 2],
                "global_attention_blocks": [4],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": WIDTH,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config=_DECODER,
        image_size=64,
        memory_attention_rope_feat_sizes=[4, 4],
        **_MEMORY,
    )
    torch.manual_seed(3)
    model = Sam2VideoModel(config).eval()
    with torch.no_grad():  # as transformers begins, all masks are empty
        for weight in model.mask_decoder.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[1] ** -0.5 if weight.dim() == 2 else 0.1)
    _be_sure(model)
    return model


def small_sam3(**options: Any) -> Sam3VideoModel:
    """112 x 112 pixels; takes every one of its four queries for an object."""
    vision = {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
            "window_size": 4,
            "global_attn_indexes": [1],
            "pretrain_image_size": 56,
        },
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    small = {"hidden_size": WIDTH, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "projection_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 16,
            "max_position_embeddings": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "geometry_encoder_config": small,
        "detr_encoder_config": small,
        "detr_decoder_config": {**small, "num_queries": 4},
        "mask_decoder_config": {"hidden_size": WIDTH, "num_attention_heads": 2},
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "image_size": 112,
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": WIDTH, "patch_size": 14, "mask_input_channels": 4},
        "mask_decoder_config": _DECODER,
        "memory_attention_rope_feat_sizes": [8, 8],
        **_MEMORY,
    }
    thresholds = {"score_threshold_detection": 0.0, "new_det_thresh": 0.0, "low_res_mask_size": 32}
    torch.manual_seed(1)
    model = Sam3VideoModel(
        Sam3VideoConfig(detector_config=detector, tracker_config=tracker, **{**thresholds, **options})
    ).eval()
    _be_sure(model.tracker_model)
    return model


def small_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "dog", "drum"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def _be_sure(tracker: Any) -> None:
    """Raise the score "is the object visible": random weights would call it hidden, and draw nothing."""
    with torch.no_grad():
        list(tracker.mask_decoder.pred_obj_score_head.modules())[-1].bias.fill_(5.0)

"""Text encoders of published models, as configurations of transformers' classes.

Meant are the config.json files of these models (Qwen/Qwen2.5-VL-7B-Instruct, Qwen/Qwen3-4B,
Qwen/Qwen3-VL-32B-Instruct, mistralai/Mistral-Small-3.2-24B-Instruct-2506, google/gemma-3-12b-it,
google/byt5-small, google/t5-v1_1-xxl, google/umt5-xxl, openai/clip-vit-large-patch14), written
down without them at hand: where such a folder is there, its own config is planned with instead.
What is not stated is the default of the class. Checked: the parameters of each are, to the last
one, as many as its files are said to hold (but for ByT5, UMT5 and Qwen3-VL without its head, of
which no count is known); Gemma's vision tower without a head and Mistral's head of its own are
those of transformers' own conversion scripts.
"""

from .record import Part

_QWEN25_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN25_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [16, 24, 24],
    },
}
UMT5_XXL = Part(
    "UMT5EncoderModel",
    {
        "model_type": "umt5",
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
QWEN25_VL_7B = Part(
    "Qwen2_5_VLForConditionalGeneration",
    {"model_type": "qwen2_5_vl", "text_config": _QWEN25_TEXT, "vision_config": _QWEN25_VISION},
)
QWEN25_VL_7B_TEXT = Part("Qwen2_5_VLTextModel", {"model_type": "qwen2_5_vl_text", **_QWEN25_TEXT})
QWEN3_4B = Part(
    "Qwen3Model",
    {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
)
QWEN3_VL_32B = Part(
    "Qwen3VLModel",
    {
        "model_type": "qwen3_vl",
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [24, 20, 20],
            },
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 5120,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
)
MISTRAL_SMALL_24B = Part(
    "Mistral3ForConditionalGeneration",
    {
        "model_type": "mistral3",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "mistral",
            "vocab_size": 131072,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": None,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 1540,
        },
    },
)
GEMMA3_12B = Part(
    "Gemma3ForConditionalGeneration",
    {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 262208,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 1024,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 896,
            "vision_use_head": False,
        },
    },
)
BYT5_SMALL = Part(
    "T5EncoderModel",
    {
        "model_type": "t5",
        "vocab_size": 1510,
        "d_model": 1472,
        "d_kv": 64,
        "d_ff": 3584,
        "num_layers": 12,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
    },
)
T5_XXL = Part(
    "T5EncoderModel",
    {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
CLIP_L = Part(
    "CLIPTextModel",
    {
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
)

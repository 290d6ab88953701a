"""Causal language models."""

from __future__ import annotations

import transformers as hf
from family import GPT2, GQA, MASKED_TEXT, VOCABULARY, Family, decoder, text_feeds

# "eager" gathers the tokens of each expert, "batched_mm" the weights of each token's experts;
# transformers' default has no ONNX form
EXPERTS = {"experts_implementation": "eager", "num_experts_per_tok": 2}
MOE = {"num_experts": 4, "moe_intermediate_size": 48}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
}

FAMILIES: dict[str, Family] = {
    "gpt2": decoder("GPT2", **GPT2),
    "gpt2-masked": decoder("GPT2", masked=True, **GPT2),
    "opt": decoder("OPT", word_embed_proj_dim=64, ffn_dim=128),
    "gpt-neox": decoder("GPTNeoX"),
    "llama": decoder("Llama", **GQA),
    "llama-masked": decoder("Llama", masked=True, **GQA),
    "mistral": decoder("Mistral", **GQA, sliding_window=8),
    "qwen2": decoder("Qwen2", **GQA),
    "qwen3": decoder("Qwen3", **GQA, head_dim=16),
    "gemma": decoder("Gemma", num_key_value_heads=1, head_dim=16),
    "gemma2": decoder("Gemma2", **GQA, head_dim=16, sliding_window=8),
    "phi": decoder("Phi"),
    "bloom": decoder("Bloom", n_head=4, n_layer=2),
    "falcon": decoder("Falcon", new_decoder_architecture=False, multi_query=True, alibi=False),
    "mpt": decoder("Mpt", d_model=64, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64),
    "olmo2": decoder("Olmo2"),
    "stablelm": decoder("StableLm", num_key_value_heads=2),
    "codegen": decoder("CodeGen", n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8),
    "gptj": decoder("GPTJ", masked=True, **GPT2, rotary_dim=8),
    "gpt-neo": decoder(
        "GPTNeo",
        masked=True,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
    ),
    "gpt-bigcode": decoder("GPTBigCode", masked=True, **GPT2),
    "openai-gpt": Family(
        lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(vocab_size=VOCABULARY, **GPT2)),
        text_feeds,
        MASKED_TEXT,
    ),
    "doge": decoder("Doge", masked=True, **GQA),
    "lfm2": decoder("Lfm2", masked=True, **GQA, layer_types=["conv", "full_attention"]),
    "biogpt": decoder("BioGpt", masked=True),
    "xglm": decoder("XGLM", masked=True, d_model=64, num_layers=2, attention_heads=4, ffn_dim=128),
    "phi3": decoder("Phi3", masked=True, **GQA),
    "starcoder2": decoder("Starcoder2", masked=True, **GQA, sliding_window=8),
    "mistral-masked": decoder("Mistral", masked=True, **GQA, sliding_window=8),
    "gemma2-masked": decoder("Gemma2", masked=True, **GQA, head_dim=16, sliding_window=8),
    "persimmon": decoder("Persimmon", masked=True),
    "nemotron": decoder("Nemotron", masked=True, **GQA),
    "olmo": decoder("Olmo", masked=True, **GQA),
    "exaone4": decoder("Exaone4", masked=True, **GQA, sliding_window=8),
    "smollm3": decoder("SmolLM3", masked=True, **GQA),
    "cohere": decoder("Cohere", masked=True, **GQA),
    "granite": decoder("Granite", masked=True, **GQA),
    "gpt-neox-japanese": decoder("GPTNeoXJapanese", masked=True, intermediate_multiple_size=2),
    "mixtral": decoder("Mixtral", masked=True, **GQA, **EXPERTS, num_local_experts=4),
    "qwen2-moe": decoder(
        "Qwen2Moe",
        masked=True,
        **{**EXPERTS, **GQA, **MOE, "experts_implementation": "batched_mm"},
        shared_expert_intermediate_size=64,
    ),
    "qwen3-moe": decoder("Qwen3Moe", masked=True, **GQA, **EXPERTS, **MOE, head_dim=16),
    "deepseek-v3-moe": decoder(
        "DeepseekV3",
        masked=True,
        **EXPERTS,
        **DEEPSEEK,
        first_k_dense_replace=1,
        n_shared_experts=1,
        moe_intermediate_size=48,
    ),
    "deepseek-v3": decoder(
        "DeepseekV3",
        masked=True,
        **DEEPSEEK,
        first_k_dense_replace=2,
        num_experts_per_tok=2,
    ),
    # scans in whole chunks of the length: Mamba-2 and the gated delta rule, each beside attention; RWKV
    "granite-hybrid": decoder(
        "GraniteMoeHybrid",
        masked=True,
        **GQA,
        layer_types=["mamba", "attention"],
        num_local_experts=0,
        shared_intermediate_size=128,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_chunk_size=64,
    ),
    "olmo-hybrid": decoder(
        "OlmoHybrid",
        masked=True,
        **GQA,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
    "lfm3": decoder("Lfm3", masked=True, **GQA, layer_types=["conv", "sliding_attention"], sliding_window=8),
}

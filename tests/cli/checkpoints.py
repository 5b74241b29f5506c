"""Small random models of other families, the same everywhere: a test makes them in a moment, and
tests/golden/make_families.py makes the same ones to ask HF transformers for their answers.

Weights are whole multiples of 2^-10, drawn so that logits are lively: every part of a family (a bias, a
norm, a rope) changes some answer. Python's standard library alone."""

import array
import json
import os
import struct

LAYERS, KV_HEADS, INTERMEDIATE, VOCAB = 3, 2, 96, 1024

_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": KV_HEADS,
    "head_dim": 64,
    "intermediate_size": INTERMEDIATE,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_theta": 10000.0,
}


def _config(architecture, model_type, **changes):
    return dict(_SHAPE, architectures=[architecture], model_type=model_type, **changes)


def _old_rope(kind, **values):
    return {"rope_scaling": dict(values, rope_type=kind)}


# Of n pairs, for texts within the positions of training and for longer ones.
def short_factors(n):
    return [1 + i / 64 for i in range(n)]


def long_factors(n):
    return [1.25 + i * i / 32 for i in range(n)]


def _phi(heads, **changes):
    """HF checks Phi-3's lists by hidden_size, not by head_dim."""
    changes = {"hidden_size": 64 * heads, "num_attention_heads": heads, "head_dim": None, **changes}
    return _config("Phi3ForCausalLM", "phi3", sliding_window=None, pad_token_id=2, **changes)


# The configs as the models' files have them, in the form of today (rope_parameters) or of before.
CONFIGS = {
    "llama": _config("LlamaForCausalLM", "llama"),
    "llama-linear": _config("LlamaForCausalLM", "llama", **_old_rope("linear", factor=4.0)),
    "llama-dynamic": _config("LlamaForCausalLM", "llama", **_old_rope("dynamic", factor=2.0)),
    "llama-yarn": _config(
        "LlamaForCausalLM",
        "llama",
        **_old_rope("yarn", factor=4.0, original_max_position_embeddings=128)
    ),
    "qwen2": _config("Qwen2ForCausalLM", "qwen2", use_sliding_window=False, sliding_window=256),
    "qwen2-yarn": _config(
        "Qwen2ForCausalLM",
        "qwen2",
        rope_theta=None,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
        },
    ),
    "qwen3": _config("Qwen3ForCausalLM", "qwen3", tie_word_embeddings=True, attention_bias=False),
    "mistral": _config("MistralForCausalLM", "mistral", sliding_window=None),
    "phi4": _config(
        "Phi3ForCausalLM", "phi3", partial_rotary_factor=1.0, rope_scaling=None, sliding_window=None, pad_token_id=2
    ),
    "phi3-longrope": _phi(
        2,
        original_max_position_embeddings=112,
        rope_scaling={
            "type": "su",
            "short_factor": short_factors(32),
            "long_factor": long_factors(32),
            "original_max_position_embeddings": 112,
        },
    ),
    "phi3-partial": _phi(
        2,
        rope_theta=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "phi4-mini": _phi(
        4,
        tie_word_embeddings=True,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=112,
        rope_scaling={"type": "longrope", "short_factor": short_factors(24), "long_factor": long_factors(24)},
    ),
    "mistral-window": _config("MistralForCausalLM", "mistral", sliding_window=24),
    "qwen2-window": _config(
        "Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=20, max_window_layers=1
    ),
    "gemma2": _config(
        "Gemma2ForCausalLM",
        "gemma2",
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        query_pre_attn_scalar=40,
        attn_logit_softcapping=8.0,
        final_logit_softcapping=20.0,
        sliding_window=32,
    ),
    "gemma3": _config(
        "Gemma3ForCausalLM",
        "gemma3_text",
        hidden_act=None,
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        query_pre_attn_scalar=48,
        rope_theta=100000.0,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        sliding_window=28,
        sliding_window_pattern=2,
    ),
    "gemma3-nested": _config(
        "Gemma3ForCausalLM",
        "gemma3_text",
        hidden_act=None,
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        head_dim=256,
        query_pre_attn_scalar=256,
        rope_theta=None,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2000.0},
        },
        sliding_window=28,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral3": {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "image_token_index": 10,
        "spatial_merge_size": 1,
        "text_config": _config("MistralForCausalLM", "mistral", sliding_window=None),
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
            "image_size": 28,
            "patch_size": 14,
        },
        "tie_word_embeddings": False,
    },
}


def _fused(at, name, hidden, parts):
    """The projections to parts, as one tensor where it has a name."""
    if name:
        return [(at + name + "_proj.weight", (sum(n for _, n in parts), hidden))]
    return [(at + part + "_proj.weight", (n, hidden)) for part, n in parts]


def tensors(name):
    """(name, shape) of every tensor of the model, in the order in which they are drawn."""
    config = CONFIGS[name].get("text_config", CONFIGS[name])
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config["head_dim"] or hidden // heads
    q, kv = heads * head_dim, KV_HEADS * head_dim
    fused = config["model_type"] == "phi3"
    out = [("model.embed_tokens.weight", (VOCAB, hidden)), ("model.norm.weight", (hidden,))]
    if not config["tie_word_embeddings"]:
        out.append(("lm_head.weight", (VOCAB, hidden)))
    for layer in range(LAYERS):
        at = "model.layers.%d." % layer
        out += [
            (at + "input_layernorm.weight", (hidden,)),
            *_fused(at + "self_attn.", "qkv" if fused else "", hidden, [("q", q), ("k", kv), ("v", kv)]),
            (at + "self_attn.o_proj.weight", (hidden, q)),
            (at + "post_attention_layernorm.weight", (hidden,)),
            *_fused(at + "mlp.", "gate_up" if fused else "", hidden, [("gate", INTERMEDIATE), ("up", INTERMEDIATE)]),
            (at + "mlp.down_proj.weight", (hidden, INTERMEDIATE)),
        ]
        if config["model_type"] == "qwen2":
            out += [(at + "self_attn.%s_proj.bias" % p, (n,)) for p, n in (("q", q), ("k", kv), ("v", kv))]
        if config["model_type"].startswith("gemma"):
            out += [(at + "%s_feedforward_layernorm.weight" % p, (hidden,)) for p in ("pre", "post")]
        if config["model_type"] in ("qwen3", "gemma3_text"):
            out += [(at + "self_attn.%s_norm.weight" % p, (head_dim,)) for p in "qk"]
    prefix = "language_model." if "text_config" in CONFIGS[name] else ""
    return [(prefix + tensor, shape) for tensor, shape in out]


def _values(n, scale, offset, state):
    """n whole multiples of 2^-10 within offset +- scale (xorshift64*, the high bits)."""
    out = array.array("f")
    mask, steps = (1 << 64) - 1, int(scale * 1024)
    for _ in range(n):
        state ^= state >> 12
        state = (state ^ (state << 25)) & mask
        state ^= state >> 27
        out.append(offset + (((state * 0x2545F4914F6CDD1D) & mask) >> 33) % (2 * steps + 1) / 1024 - steps / 1024)
    return out, state


def _scale(name, shape, gemma):
    if len(shape) == 2:
        return ((0.06 if gemma else 1.5) if "embed" in name else 4.5 / shape[1] ** 0.5), 0.0
    if name.endswith(".bias"):
        return 1.0, 0.0
    return 0.75, 0.25 if gemma else 1.25  # Gemma's files hold norms less 1


def write(name, folder, tokenizer, without=None, gentle=False):
    """Writes the model folder. without: tensors whose name holds this word are neutral (biases 0, norms 1).
    gentle: queries and keys a quarter as large, so that rounding does not grow from layer to layer."""
    os.makedirs(folder, exist_ok=True)
    gemma = CONFIGS[name]["model_type"].startswith("gemma")
    header, data, at, state = {}, [], 0, 0x9E3779B97F4A7C15
    for tensor, shape in tensors(name):
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values, state = _values(n, *_scale(tensor, shape, gemma), state)
        if without and without in tensor:
            values = array.array("f", [0.0 if gemma or tensor.endswith(".bias") else 1.0] * n)
        if gentle and any(part in tensor for part in ("q_proj.weight", "k_proj.weight", "qkv_proj")):
            values = array.array("f", (x / 4 for x in values))
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + 4 * n]}
        data.append(values.tobytes())
        at += 4 * n
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))
    config = {k: v for k, v in CONFIGS[name].items() if v is not None or k == "sliding_window"}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    with open(tokenizer, "rb") as f, open(os.path.join(folder, "tokenizer.json"), "wb") as g:
        g.write(f.read())
    return folder


def other_layout(config):
    """The same config as the other generation of HF transformers writes it: rope_theta, rope_scaling and
    torch_dtype, or rope_parameters, layer_types and dtype."""
    if "text_config" in config:
        return dict(config, text_config=other_layout(config["text_config"]))
    c = {k: v for k, v in config.items() if v is not None or k == "sliding_window"}
    new = c.pop("rope_parameters", None)
    if new:
        full = dict(new.get("full_attention", new))
        if "full_attention" in new:
            c["rope_local_base_freq"] = new["sliding_attention"]["rope_theta"]
        c["rope_theta"] = full.pop("rope_theta")
        if "partial_rotary_factor" in full:
            c["partial_rotary_factor"] = full.pop("partial_rotary_factor")
        if full["rope_type"] != "default":
            c["rope_scaling"] = full
        return dict(c, torch_dtype="float32")
    rope = dict(c.pop("rope_scaling", None) or {"rope_type": "default"})
    rope = dict(rope, rope_type=rope.pop("type", rope.get("rope_type")), rope_theta=c.pop("rope_theta"))
    if "partial_rotary_factor" in c:
        rope["partial_rotary_factor"] = c.pop("partial_rotary_factor")
    if "rope_local_base_freq" in c:
        local = {"rope_type": "default", "rope_theta": c.pop("rope_local_base_freq")}
        rope = {"full_attention": rope, "sliding_attention": local}
    every = c.pop("sliding_window_pattern", 2 if c["model_type"] == "gemma2" else None)
    first = c.pop("max_window_layers", None)
    if c.get("sliding_window") and c.get("use_sliding_window", True):
        kinds = ["full_attention", "sliding_attention"]
        c["layer_types"] = [
            kinds[(i + 1) % every != 0 if every else first is None or i >= first] for i in range(LAYERS)
        ]
    return dict(c, rope_parameters=rope, dtype="float32")


# Prompts of a few to some hundred tokens.
PROMPTS = [
    "The hidden number of Anna is 4821.",
    "One two three four five six seven. " * 6,
    "".join("The number of box %d is %d. " % (i, i * 7919 % 9973) for i in range(14)),
    "Question: what is hidden? Answer:",
]
NEW_TOKENS = 24

"""Top-1 tokens of HF transformers in float32 and bf16 beside ours, teacher-forced.

usage: hf_top1.py TEACHER_FORCED_BINARY WORK_DIR [tiny]
Writes a checkpoint of Llama-3-8B's shape with random weights (seed 0) to WORK_DIR, takes 8 random prompts of
2,048 tokens, and compares positions 1,024 and later: how often HF bf16 and our CUDA backend, also in FP8,
disagree with HF float32. Then times HF generate's prefill (8 k tokens) for the speed table. Needs a GPU, torch, transformers.
"""
import json, os, subprocess, sys, time
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM

binary, work, tiny = sys.argv[1], sys.argv[2], len(sys.argv) > 3
model_dir = os.path.join(work, "model"); os.makedirs(model_dir, exist_ok=True)
torch.manual_seed(0)
shape = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256)
if tiny: shape = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, vocab_size=4096)
config = LlamaConfig(**shape, max_position_embeddings=16384, rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
                     bos_token_id=0, eos_token_id=None, attn_implementation="sdpa")
n_prompts, n_tokens, n_prefill = 8, 2048, 1024
device = "cuda"
with torch.device(device):
    torch.set_default_dtype(torch.bfloat16); bf = LlamaForCausalLM(config).eval(); torch.set_default_dtype(torch.float32)
bf.save_pretrained(model_dir, max_shard_size="4GB"); print("checkpoint written", flush=True)
ids = torch.randint(1, shape["vocab_size"], (n_prompts, n_tokens), generator=torch.Generator().manual_seed(1))
ids.numpy().astype(np.int32).tofile(os.path.join(work, "ids.bin"))

@torch.inference_mode()
def top1(model):
    out = []
    for i in range(n_prompts):
        h = model.model(ids[i:i + 1].to(device)).last_hidden_state[0, n_prefill - 1:]
        out.append(model.lm_head(h).float().argmax(-1).cpu().numpy())
    return np.stack(out)

half = top1(bf)
with torch.inference_mode():
    x = torch.randint(1, shape["vocab_size"], (1, 8192), device=device); best = 1e9
    for _ in range(4):
        torch.cuda.synchronize(); t = time.time(); bf.model(x); torch.cuda.synchronize(); best = min(best, time.time() - t)
    print(f"HF prefill of 8192 tokens: {8192 / best:.0f} tokens/s", flush=True)
full = top1(bf.float())

def e4m3(x):
    """As model.weights = fp8 rounds a row of a weight, and a token's activations."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=2.0 ** -100) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale

# the same forms, everything else in float32: what FP8's rounding alone costs these weights
for layer in bf.model.layers:
    for m in layer.modules():
        if isinstance(m, torch.nn.Linear):
            m.weight.data = e4m3(m.weight.data)
            m.register_forward_pre_hook(lambda _, args: (e4m3(args[0]),))
rounded = float((top1(bf) != full).mean())
print(f"HF float32 with its layers' weights and their inputs rounded to e4m3: disagreement {rounded:.4%}", flush=True)
del bf; torch.cuda.empty_cache()
for ranks, weights, kv in ((1, "bf16", "bf16"), (4, "bf16", "bf16"), (1, "bf16", "fp8"), (1, "fp8", "bf16"), (1, "fp8", "fp8")):
    subprocess.run([binary, "cuda", model_dir, os.path.join(work, "ids.bin"), os.path.join(work, "top.bin"), str(n_prompts), str(n_tokens), str(n_prefill), str(ranks), "-", weights, kv], check=True)
    ours = np.fromfile(os.path.join(work, "top.bin"), dtype=np.int32).reshape(half.shape)
    a, b = float((half != full).mean()), float((ours != full).mean())
    print(f"ranks {ranks}, weights {weights}, K and V {kv}: disagreement with HF float32: HF bf16 {a:.4%}, ours {b:.4%}, ratio {b / max(a, 1e-9):.3f}", flush=True)

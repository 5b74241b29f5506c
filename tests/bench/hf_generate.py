#!/usr/bin/env python3
"""Generates greedily with HF transformers on the CPU in float32 and times it.

Reads records of LongBench's layout, fills their dataset's template, and runs
the whole job once for each batch size: tokenizing, generating, decoding. The
batch size 1 keeps the input's order; a larger one sorts by length and pads on
the left. Imports and loading the model are timed apart and never counted.

Needs transformers and torch from PyPI, and the zstd program for .zst files.
Prints one line a batch size:
  batch 8: 300 records, 41.2 s, 7.28 records/s, 300 exact (load 2.1 s, imports 9.0 s)
"""
import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time


def parse_args():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--model", required=True, help="a model folder of the HF layout")
    ap.add_argument("--input", required=True, help="a .jsonl, .jsonl.zst or .tar.zst file")
    ap.add_argument("--member", help="the archive's member, e.g. data/needle_1k.jsonl")
    ap.add_argument("--prompts", required=True, help="JSON: template by dataset")
    ap.add_argument("--limits", required=True, help="JSON: new tokens by dataset")
    ap.add_argument("--limit", type=int, default=0, help="the first N records only; 0 for all")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--batch", default="1,8", help="batch sizes, separated by commas")
    ap.add_argument("--json", action="store_true", help="print a JSON object a line instead")
    return ap.parse_args()


def read_text(path, member):
    """The JSONL text and the name of the file that held it."""
    if not path.endswith(".zst"):
        with open(path, encoding="utf-8") as f:
            return f.read(), path
    data = subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout
    if not path.endswith(".tar.zst"):
        return data.decode("utf-8"), path[:-4]
    if not member:
        sys.exit("--member is needed for an archive")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.extractfile(member).read().decode("utf-8"), member


def read_records(args):
    """A list of (prompt, new-token limit, first answer)."""
    with open(args.prompts, encoding="utf-8") as f:
        templates = json.load(f)
    with open(args.limits, encoding="utf-8") as f:
        limits = json.load(f)
    text, name = read_text(args.input, args.member)
    stem = os.path.basename(name).removesuffix(".jsonl")
    records = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        r = json.loads(line)
        dataset = stem if stem in templates else r["dataset"]
        # One pass over the template: inserted text is not scanned again.
        head, tail = templates[dataset].split("{context}")
        prompt = r["input"].join(head.split("{input}")) + r["context"] + r["input"].join(tail.split("{input}"))
        records.append((prompt, limits[dataset], r["answers"][0]))
        if len(records) == args.limit:
            break
    return records


def run_job(model, tokenizer, records, batch):
    """Seconds of the whole job, and how many answers are exact."""
    import torch

    started = time.perf_counter()
    ids = [tokenizer(prompt)["input_ids"] for prompt, _, _ in records]
    order = list(range(len(records)))
    if batch > 1:
        order.sort(key=lambda i: len(ids[i]))
    texts = [None] * len(records)
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        longest = max(len(ids[i]) for i in some)
        pad = [longest - len(ids[i]) for i in some]
        tokens = torch.tensor([[tokenizer.pad_token_id] * n + ids[i] for n, i in zip(pad, some)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pad])
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max(records[i][1] for i in some),
                pad_token_id=tokenizer.pad_token_id,
            )
        for row, i in zip(out, some):
            new = row[longest : longest + records[i][1]]
            texts[i] = tokenizer.decode(new, skip_special_tokens=True)
    seconds = time.perf_counter() - started
    exact = sum(text.strip() == answer for text, (_, _, answer) in zip(texts, records))
    return seconds, exact


def main():
    args = parse_args()
    records = read_records(args)
    if not records:
        sys.exit("no records")

    started = time.perf_counter()
    try:
        import torch
        import transformers
    except ImportError as e:
        print(f"skipped: {e}; pip install torch transformers", file=sys.stderr)
        sys.exit(77)
    imports = time.perf_counter() - started

    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    started = time.perf_counter()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(args.model, "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    eos = model.generation_config.eos_token_id
    pad = model.config.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    run_job(model, tokenizer, records[:1], 1)  # first-call work of the library is not the job's
    load = time.perf_counter() - started

    for batch in [int(b) for b in args.batch.split(",")]:
        seconds, exact = run_job(model, tokenizer, records, batch)
        rate = len(records) / seconds
        if args.json:
            print(json.dumps({"batch": batch, "records": len(records), "seconds": seconds,
                              "records_per_second": rate, "exact": exact, "load_seconds": load,
                              "import_seconds": imports, "torch": torch.__version__,
                              "transformers": transformers.__version__}), flush=True)
        else:
            print(f"batch {batch}: {len(records)} records, {seconds:.1f} s, {rate:.2f} records/s, "
                  f"{exact} exact (load {load:.1f} s, imports {imports:.1f} s)", flush=True)


if __name__ == "__main__":
    main()

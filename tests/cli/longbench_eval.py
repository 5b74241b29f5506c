"""Stands for LongBench's eval.py: the same command line, the same folders, but a score that needs no library.

    eval.py --model MODEL [--e]

Reads pred/MODEL/DATASET.jsonl (with --e: pred_e), lines with pred, answers, all_classes and length, and writes
pred/MODEL/result.json: by dataset the percentage of predictions that are one of their answers."""

import argparse
import json
import os

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--e", action="store_true")
args = parser.parse_args()
folder = os.path.join("pred_e" if args.e else "pred", args.model)
scores = {}
for name in sorted(os.listdir(folder)):
    if not name.endswith("jsonl"):
        continue
    with open(os.path.join(folder, name), encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    for line in lines:
        assert {"pred", "answers", "all_classes", "length"} <= set(line), line
    right = [line["pred"].strip() in line["answers"] for line in lines]
    scores[name.split(".")[0]] = round(100 * sum(right) / len(right), 2)
with open(os.path.join(folder, "result.json"), "w", encoding="utf-8") as f:
    json.dump(scores, f, indent=4)

"""Finetune the embedded LLM on the training examples of a task, as a peer of adapting the scorer.

    python benchmarks/finetune_llm.py POOL.jsonl OUT --mode lora|full [--epochs 3] [--max-steps N]

Causal language modelling of the references after the prompt of conf/bigbench.yaml without shots; the loss is on the
answer alone. Leaves the finetuned model in OUT, LoRA merged, and prints one JSON line: parameters trained, seconds and
the peak of the process' memory.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from peak_memory import peak_mib
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from cappy_lightning.backbones.embedded import gguf_path
from cappy_lightning.sources.jsonl import read_labelled_pools

BATCH = 8
#: Usual for LoRA and for full finetuning of a model of this size.
LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}


def batches(examples: list[tuple[str, str]], tokenizer: Any, seed: int) -> list[dict[str, torch.Tensor]]:
    """One epoch of padded batches, labels being -100 where no loss is taken."""
    encoded = []
    for prompt, answer in examples:
        ahead, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
        encoded.append((whole, [-100] * len(ahead) + whole[len(ahead) :]))
    random.Random(seed).shuffle(encoded)
    found = []
    for start in range(0, len(encoded), BATCH):
        own = encoded[start : start + BATCH]
        width = max(len(ids) for ids, _ in own)
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        rows = {
            "input_ids": [ids for ids, _ in own],
            "labels": [labels for _, labels in own],
            "attention_mask": [[1] * len(ids) for ids, _ in own],
        }
        found.append(
            {name: torch.tensor([row + [fill[name]] * (width - len(row)) for row in rows[name]]) for name in rows}
        )
    return found


def main() -> None:
    """Train, save, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("out")
    parser.add_argument("--mode", choices=list(LEARNING_RATES), default="lora")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    examples = [
        (f"Question: {example.instruction}\nAnswer:", f" {reference}\n")
        for example in (pool.example for pool in read_labelled_pools([options.pool]))
        if example.split == "train"
        for reference in example.references
    ]
    path = gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # Its weights are plain ones now, and can be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    if options.mode == "lora":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATES[options.mode], weight_decay=0.0, fused=True)
    epochs = [batches(examples, tokenizer, options.seed + epoch) for epoch in range(options.epochs)]
    steps = [batch for epoch in epochs for batch in epoch][: options.max_steps]
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * len(steps)), len(steps))
    model.train()
    begin = time.perf_counter()
    for batch in steps:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    seconds = time.perf_counter() - begin
    cost = {
        "trained": sum(parameter.numel() for parameter in trained),
        "examples": len(examples),
        "steps": len(steps),
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "last_loss": loss.item(),
    }
    model = model.merge_and_unload() if options.mode == "lora" else model
    out = Path(options.out)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(json.dumps(cost))


if __name__ == "__main__":
    main()

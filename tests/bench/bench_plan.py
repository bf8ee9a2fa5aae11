"""Planning a leaderboard: 10 models, 40 methods, 21 tasks of 200 rows, `lcbench run --dry-run --plan-gpu h100`.

    python tests/bench/bench_plan.py [--write | --quick]     # needs the demo model and rows of LongBench; a minute

Ten folders with a small model of 32 layers each, windows of 4k to 128k tokens, stand for the models, and the rows of
LongBench that are installed, repeated up to 200 a task (those of a sister task where a task has none), for the data.
The models come with the demo model's tokenizer, once one of ten times the same and once, in five rules of their own,
so that nothing is shared between the five. Processor time is that of the command, from start to end, imports included;
--quick has two models, four methods and three tasks.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeps import arguments, page, table

from lcbench.config.home import home
from lcbench.config.spec import ModelSpec
from lcbench.data.ledger import Installed, dataset_folder, now, read_ledger, write_ledger
from lcbench.models.load import describe
from lcbench.tasks.facts import LONGBENCH, TASK_FACTS

METHODS = (
    "full,adakv,cam,chunkkv,corm,dprope,dynamic-ntk,dynamickv,ems-approx,expected-attention,flexgen,"
    "gemfilter,h2o,h2o-longctx,infllm,keydiff,kivi@bits=2,kivi@bits=4,knorm,kvmerger,lighttransfer,"
    "lm-infinite,longcache,ntk,pi,pyramidkv,quest,random,rope-theta,selfextend,shadowkv,snapkv@budget=0.2,"
    "snapkv@budget=0.3,snapkv@budget=0.5,squeezed-attention,streamingllm,streamingllm-longctx,tova,vatp,yarn"
)
SISTERS = {"2wikimqa": "hotpotqa_e", "musique": "hotpotqa", "dureader": "multifieldqa_zh"}
ROWS, WINDOWS = 200, (4096, 8192, 16384, 32768, 131072)


def make_rows(folder: Path) -> int:
    """LongBench's 21 tasks with 200 rows each below ``folder``; bytes of them."""
    here, there = dataset_folder(home(), LONGBENCH), dataset_folder(folder, LONGBENCH)
    known = read_ledger(here)
    if not known:
        raise SystemExit("Rows of LongBench are not here. Run: lcbench download longbench")
    shutil.copytree(here / "config", there / "config")
    made = {name: entry for name, entry in known.items() if name.startswith("config/")}
    for name in tasks():
        source = next((n for n in (name, f"{name}_e", SISTERS.get(name, name)) if f"{n}.jsonl" in known), "qasper")
        rows = [json.loads(line) for line in (here / f"{source}.jsonl").read_bytes().splitlines()]
        numbered = [{**rows[i % len(rows)], "_id": f"{name}-{i}"} for i in range(ROWS)]
        content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in numbered)
        (there / f"{name}.jsonl").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        made[f"{name}.jsonl"] = Installed(digest, len(content), ROWS, "repeated", None, now())
    write_ledger(there, made)
    return sum(entry.size for entry in made.values())


def tasks() -> list[str]:
    return [facts.name for facts in TASK_FACTS.values() if facts.benchmark == LONGBENCH]


def make_models(folder: Path, count: int, tokenizers: int) -> list[str]:
    """Model folders, with so many different tokenizers among them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    _, tokenizer = describe(ModelSpec(name="demo"), home())
    names = []
    for i in range(count):
        if i % tokenizers == i:
            tokenizer.add_tokens([f"<|rule {i}|>"])  # no text has it, and the tokenizer is another one
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=32,
            num_attention_heads=4, num_key_value_heads=2, head_dim=64,
            max_position_embeddings=WINDOWS[i % len(WINDOWS)],
        )  # fmt: skip
        torch.manual_seed(i)
        path = folder / f"{tokenizers}-{i}"
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
        tokenizer.save_pretrained(path)
        names.append(str(path))
    return names


def plan(folder: Path, models: list[str], methods: list[str], of: list[str]) -> tuple[float, float, float, str]:
    """Processor and clock seconds of the command, its largest memory (MiB), its last lines."""
    study = folder / "study.yaml"
    study.write_text(json.dumps({"models": models, "methods": methods, "tasks": of}))
    words = ["run", "--config", str(study), "--dry-run", "--plan-gpu", "h100"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "lcbench", *words],
        capture_output=True, text=True, env={**os.environ, "LCBENCH_HOME": str(folder)}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = next(line for line in done.stdout.splitlines() if "answers:" in line)
    return used, time.perf_counter() - start, after.ru_maxrss / 1024, said


def main() -> None:
    options = arguments(__doc__)
    count, methods, of = 10, METHODS.split(","), tasks()
    if options.quick:
        count, methods, of = 2, methods[:4], of[:3]
    load = os.getloadavg()[0]
    rows = [["models", "tokenizers", "methods", "tasks", "processor (s)", "clock (s)", "memory, MiB"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make_rows(folder) / 2**20
        for some, different in ((1, 1), (count, 1), (count, min(5, count))):
            models = make_models(folder, some, different)
            plan(folder, models, methods[:1], of[:1])  # hashes of the weights are kept, as they are on a second day
            used, clock, memory, said = plan(folder, models, methods, of)
            rows.append([f"{some}", f"{different}", f"{len(methods)}", f"{len(of)}"])
            rows[-1] += [f"{used:.1f}", f"{clock:.1f}", f"{memory:,.0f}"]
            print(rows[-1], said, flush=True)
    words = f"{len(of)} tasks of {ROWS} rows ({size:,.0f} MiB for 21 tasks), load average {load:.1f} at the start."
    print(table(rows), words, sep="\n\n")
    if options.write:
        page("plan", "Plans on paper", "python tests/bench/bench_plan.py --write", f"{words}\n\n{table(rows)}")


if __name__ == "__main__":
    main()

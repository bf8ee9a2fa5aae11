"""``lcbench run``: answer the tasks with every method, continue where a killed run stopped."""

from __future__ import annotations

from pathlib import Path

import typer

from lcbench.cli.progress import watcher as make_watcher
from lcbench.cli.studying import run_study
from lcbench.config.shard import Shard
from lcbench.config.study import make_study
from lcbench.errors import LcbenchError, UsageError

MODEL = (
    "Demo model ('demo'), hub id, local folder or GGUF file; openai:NAME for a model behind --base-url. "
    "Default: LCBENCH_MODEL, else demo."
)
_SERVED = "Model behind an address"


def run(
    model: str | None = typer.Option(None, "--model", "-m", help=MODEL, rich_help_panel="What to run"),
    method: list[str] | None = typer.Option(
        None,
        "--method",
        help="Methods: full,kivi@bits=2,streamingllm@budget=512. Default: full.",
        rich_help_panel="What to run",
    ),
    task: list[str] | None = typer.Option(
        None,
        "--task",
        "-t",
        help="Tasks, categories or benchmarks: qasper,few-shot. Default: a small passkey.",
        rich_help_panel="What to run",
    ),
    budget: list[str] | None = typer.Option(
        None,
        "--budget",
        help="0.25,0.5,512: each method that takes a budget and sets none, once with each.",
        rich_help_panel="What to run",
    ),
    set_: list[str] | None = typer.Option(
        None, "--set", help="key=value for every chosen method that has the parameter.", rich_help_panel="What to run"
    ),
    config: Path | None = typer.Option(
        None,
        "--config",
        "-c",
        help="YAML file with the same keys, or a study of several models (lcbench init); the command line wins.",
        rich_help_panel="What to run",
    ),
    out: Path | None = typer.Option(
        None,
        "--out",
        "-o",
        help="Run directory; of several models: the folder of theirs. Default: under runs/.",
        rich_help_panel="What to run",
    ),
    limit: int | None = typer.Option(
        None, "--limit", "-n", help="Rows a task, from the first.", rich_help_panel="How much"
    ),
    max_input_tokens: int | None = typer.Option(
        None,
        "--max-input-tokens",
        help="Cut prompts to this many tokens (chat format and answer on top); shown in every table.",
        rich_help_panel="How much",
    ),
    over_length: str | None = typer.Option(
        None,
        "--over-length",
        help="A prompt that its task does not cut and that does not fit: error | truncate | skip. Default: error.",
        rich_help_panel="How much",
    ),
    truncation: str | None = typer.Option(
        None,
        "--truncation",
        help="How long prompts lose their middle: middle (as LongBench) | exact-ids.",
        rich_help_panel="How much",
    ),
    context: str | None = typer.Option(
        None, "--context", help="full | none (ask without the context: contamination).", rich_help_panel="How much"
    ),
    question: str | None = typer.Option(
        None,
        "--question",
        help="visible | hidden: methods compress the context before they see the question. Default: visible.",
        rich_help_panel="How much",
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the plan (jobs, lengths, memory, time) and stop.", rich_help_panel="Output"
    ),
    plan_gpu: str | None = typer.Option(
        None,
        "--plan-gpu",
        metavar="a100|h100|h200",
        help="With --dry-run: hours of this GPU and disk, from a few rows of each task.",
        rich_help_panel="Output",
    ),
    dtype: str | None = typer.Option(
        None, "--dtype", help="auto | float32 | float16 | bfloat16.", rich_help_panel="Model"
    ),
    device: str | None = typer.Option(
        None, "--device", help="auto | cpu | cuda:0 | auto-map (over all GPUs).", rich_help_panel="Model"
    ),
    attn: str | None = typer.Option(None, "--attn", help="auto | sdpa | flash_attention_2.", rich_help_panel="Model"),
    load_in: str | None = typer.Option(
        None, "--load-in", help="8bit | 4bit weights, through bitsandbytes.", rich_help_panel="Model"
    ),
    revision: str | None = typer.Option(None, "--revision", help="Hub branch, tag or commit.", rich_help_panel="Model"),
    trust_remote_code: bool | None = typer.Option(
        None,
        "--trust-remote-code/--no-trust-remote-code",
        help="Run Python code from the model's repository.",
        rich_help_panel="Model",
    ),
    chat: str | None = typer.Option(
        None,
        "--chat",
        help="auto (the tokenizer's template) | official (LongBench's by family) | none | FILE.",
        rich_help_panel="Model",
    ),
    prefill_chunk: int | None = typer.Option(
        None, "--prefill-chunk", help="Read prompts in pieces of this many tokens.", rich_help_panel="Model"
    ),
    exact: bool | None = typer.Option(
        None,
        "--exact",
        help="Decode every answer alone instead of many in one batch.",
        rich_help_panel="Model",
        show_default=False,
    ),
    seed: int | None = typer.Option(None, "--seed", help="Default 42.", rich_help_panel="Model"),
    workers: str | None = typer.Option(
        None,
        "--workers",
        metavar="auto|N",
        help="Processes, each with the model: one a GPU, or N on a CPU. auto: every GPU. Default: 1.",
        rich_help_panel="Several machines",
    ),
    engine: str | None = typer.Option(
        None,
        "--engine",
        help="local | ray: the workers are actors of a Ray cluster (RAY_ADDRESS, or one made here).",
        rich_help_panel="Several machines",
    ),
    ray_gpus: str | None = typer.Option(
        None,
        "--ray-gpus",
        metavar="0.5|N",
        help="GPUs of each actor, or a share of one. Default: 1 where this machine has any, else 0.",
        rich_help_panel="Several machines",
    ),
    ray_cpus: int | None = typer.Option(
        None, "--ray-cpus", help="Cores of each actor. Default: 1.", rich_help_panel="Several machines"
    ),
    shard: str | None = typer.Option(
        None,
        "--shard",
        metavar="K/N",
        help="Answer part K of N, in RUN/shards; `lcbench merge RUN` joins them. For job arrays.",
        rich_help_panel="Several machines",
    ),
    group_memory: str | None = typer.Option(
        None,
        "--group-memory",
        metavar="8GiB",
        help="Memory for what is answered together. Default: by what is free when the run begins, within the limits of "
        "a container, a batch system or ulimit.",
        rich_help_panel="Model",
    ),
    base_url: str | None = typer.Option(
        None,
        "--base-url",
        help="Address of an OpenAI-compatible server, /v1 included. Default: OpenAI's. Key: LCBENCH_API_KEY.",
        rich_help_panel=_SERVED,
    ),
    api: str | None = typer.Option(
        None,
        "--api",
        help="completions | token-ids | chat (the server applies its chat template). Default: by task and server.",
        rich_help_panel=_SERVED,
    ),
    tokenizer: str | None = typer.Option(
        None,
        "--tokenizer",
        help="The model's own (hub id, folder, GGUF file): prompts are then counted, cut and formatted here.",
        rich_help_panel=_SERVED,
    ),
    window: int | None = typer.Option(
        None, "--window", help="Its tokens of prompt and answer, where it does not tell.", rich_help_panel=_SERVED
    ),
    concurrency: int | None = typer.Option(
        None, "--concurrency", help="Calls at a time. Default: 8.", rich_help_panel=_SERVED
    ),
    timeout: float | None = typer.Option(
        None, "--timeout", help="Seconds for one call. Default: 600.", rich_help_panel=_SERVED
    ),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="No progress and no table; only the result and errors.", rich_help_panel="Output"
    ),
    log: str = typer.Option(
        "text",
        "--log",
        metavar="text|json",
        help="json: one JSON object a line on stderr for every prefill, decode, sample, …; nothing else there.",
        rich_help_panel="Output",
    ),
) -> None:
    """Run methods on tasks with a model; running the same command again continues and finishes the run.

    Example: lcbench run --model demo --method full,kivi@bits=2 --task passkey@lengths=384,depths=5,repeats=1
    """
    given = {
        "model": model,
        "methods": method or None,
        "tasks": task or None,
        "budgets": budget or None,
        "settings": _settings(set_),
        "limit": limit,
        "max_input_tokens": max_input_tokens,
        "over_length": over_length,
        "truncation": truncation,
        "context": context,
        "question": question,
        "exact": exact,
        "dtype": dtype,
        "device": device,
        "attn": attn,
        "load_in": load_in,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "chat": chat,
        "prefill_chunk": prefill_chunk,
        "seed": seed,
        "group_memory": group_memory,
        "engine": engine,
        "workers": workers,
        "ray_gpus": ray_gpus,
        "ray_cpus": ray_cpus,
        "base_url": base_url,
        "api": api,
        "tokenizer": tokenizer,
        "window": window,
    }
    calls = {"concurrency": concurrency, "timeout": timeout}
    watcher = make_watcher(log, quiet)
    try:
        study = make_study(given, config)
        part = None if shard is None else Shard.parse(shard)
        failed = run_study(study, out or study.out, watcher, part, dry_run=dry_run, calls=calls, plan_gpu=plan_gpu)
    except LcbenchError as error:
        if watcher.error(error):
            raise typer.Exit(2) from None
        raise
    if failed:
        raise typer.Exit(1)


def _settings(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    result = {}
    for pair in pairs:
        key, eq, value = pair.partition("=")
        if not eq or not key or not value:
            raise UsageError(f"--set {pair} is not key=value.", "Write --set budget=0.25.")
        result[key] = value
    return result

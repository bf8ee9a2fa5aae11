"""One sweep against the public library kvpress running the same methods, one after another.

    python tests/bench/bench_kvpress.py --python ENV/bin/python [--rows 3] [--write]     # about five minutes

kvpress needs an older transformers than lcbench, hence an environment of its own (``pip install kvpress`` in a fresh
one); ``--python`` names its interpreter. Both sides get the same token ids (rows of qasper cut to 2,000 tokens), the
same weights in float32, the same number of threads, keep a quarter of each prompt, and make the same number of tokens
an answer (end tokens do not stop), so that they do the same work. Loading is not counted on either side.

kvpress is called as its documentation says, ``with press(model): model(ids, past_key_values=cache)``, and then decoded
greedily. Each side takes its own defaults but for the budget (windows, kernels, protected tokens differ), so that texts
need not be equal; the work is. StreamingLLM rolls on while decoding here and cuts the prompt alone there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

BUDGET = 0.25
# Our spec, and the press there (a class, or a class around another); None is the full cache.
METHODS: dict[str, tuple[str, ...] | None] = {
    "full": None,
    f"snapkv@budget={BUDGET}": ("SnapKVPress",),
    f"pyramidkv@budget={BUDGET}": ("PyramidKVPress",),
    f"tova@budget={BUDGET},decode=false,keep_last=true": ("TOVAPress",),
    f"streamingllm@budget={BUDGET}": ("StreamingLLMPress",),
    f"knorm@budget={BUDGET}": ("KnormPress",),
    f"keydiff@budget={BUDGET}": ("KeyDiffPress",),
    f"expected-attention@budget={BUDGET}": ("ExpectedAttentionPress",),
    f"chunkkv@budget={BUDGET}": ("ChunkKVPress", "SnapKVPress"),
    f"adakv@budget={BUDGET}": ("AdaKVPress", "SnapKVPress"),
    f"random@budget={BUDGET}": ("RandomPress",),
}
NEW_TOKENS = 48
TOKENS = 2000


def their_run(job: dict[str, Any]) -> None:
    """In kvpress's interpreter: seconds of wall and processor time a method, one JSON object a line."""
    try:
        import kvpress
    except ImportError:
        raise SystemExit(
            f"{sys.executable} has no kvpress. Make an environment for it (python -m venv ENV; ENV/bin/pip install "
            "kvpress) and name its interpreter: --python ENV/bin/python."
        ) from None
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, attn_implementation="sdpa"
    )

    def best(logits: Any) -> int:
        logits[0, -1, job["ends"]] = -torch.inf
        return int(logits[0, -1].argmax())

    def answer(ids: list[int], press: Any) -> list[int]:
        from contextlib import nullcontext

        cache, tokens = transformers.DynamicCache(), torch.tensor([ids])
        with torch.inference_mode():
            with nullcontext() if press is None else press(model):
                logits = model(tokens, past_key_values=cache, logits_to_keep=1).logits
            made = [best(logits)]
            while len(made) < job["new_tokens"]:
                position = torch.tensor([[len(ids) + len(made) - 1]])
                logits = model(torch.tensor([made[-1:]]), past_key_values=cache, position_ids=position).logits
                made.append(best(logits))
        return made

    def press_of(names: list[str] | None) -> Any:
        if names is None:
            return None
        inner = getattr(kvpress, names[-1])(compression_ratio=1 - BUDGET)
        return inner if len(names) == 1 else getattr(kvpress, names[0])(inner)

    answer(job["prompts"][0][:200], None)
    for name, press in job["methods"].items():
        wall, cpu = time.perf_counter(), time.process_time()
        made = [answer(ids, press_of(press)) for ids in job["prompts"]]
        found = {"method": name, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "ids": made}
        print(json.dumps(found | {"version": transformers.__version__}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has kvpress")
    parser.add_argument("--rows", type=int, default=3, help="rows of qasper")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/kvpress.md")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        their_run(json.loads(options.job.read_text()))
        return
    text = compare(options.python, options.rows)
    print(text)
    if options.write:
        from sweeps import page

        page("kvpress", "One sweep against kvpress", "python tests/bench/bench_kvpress.py --write", text)


def compare(python: str, rows: int) -> str:
    """Runs both; a table with the ratio of their time to ours."""
    import torch
    from sweeps import endless, model, table

    from lcbench.config.home import home
    from lcbench.config.spec import RunSpec
    from lcbench.engine.answer import Answerer
    from lcbench.engine.groups import make_groups
    from lcbench.engine.memory import measure_limits
    from lcbench.engine.options import Options
    from lcbench.engine.prepare import prepare
    from lcbench.methods.registry import resolve
    from lcbench.models.converted import folder_for
    from lcbench.tasks.registry import resolve as resolve_tasks

    check = subprocess.run([python, "-c", "import kvpress"], capture_output=True, text=True, check=False)
    if check.returncode:
        their_run_missing(python, check.stderr)
    loaded = model(quick=False)
    (task,) = resolve_tasks("qasper")
    task = endless(task, NEW_TOKENS)
    methods = [resolve(name) for name in METHODS]
    spec, chosen = RunSpec(max_input_tokens=TOKENS), [(task, task.load(home(), rows))]
    prepared = prepare(spec, loaded.info, loaded.tokenizer, methods, chosen, home())
    sets = [replace(one, max_new_tokens=NEW_TOKENS) for one in prepared]
    prompts = [list(prompt.ids) for prompt in sets[0].prompts]
    load_before = os.getloadavg()[0]
    theirs = run_theirs(
        python,
        {
            "model": str(folder_for(str(loaded.info.weights_sha256), home())),
            "threads": torch.get_num_threads(),
            "new_tokens": NEW_TOKENS,
            "ends": list(loaded.info.eos_ids),
            "methods": METHODS,
            "prompts": prompts,
        },
    )
    answerer = Answerer(loaded, sets, Options())
    groups = make_groups(sets, loaded.shape(), measure_limits(loaded.info))
    wall, cpu = time.perf_counter(), time.process_time()
    results = [result for group in groups for result in answerer.run(group)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert all(result.record.ok for result in results), [r.record.error for r in results if not r.record.ok]
    same = 0
    for result in results:
        ids = next(t for t in theirs if resolve(t["method"]).id == result.method)["ids"][result.index - 1]
        same += loaded.tokenizer.decode(ids, skip_special_tokens=True).strip() == result.record.pred.strip()
    their_wall, their_cpu = sum(t["wall"] for t in theirs), sum(t["cpu"] for t in theirs)
    lines = [["", "seconds", "processor seconds"]]
    lines += [[f"kvpress, `{t['method']}`", f"{t['wall']:.1f}", f"{t['cpu']:.1f}"] for t in theirs]
    lines += [
        [f"kvpress, all {len(theirs)}", f"{their_wall:.1f}", f"{their_cpu:.1f}"],
        [f"lcbench, one sweep of all {len(theirs)}", f"{wall:.1f}", f"{cpu:.1f}"],
        ["**kvpress over lcbench**", f"**{their_wall / wall:.2f}**", f"**{their_cpu / cpu:.2f}**"],
    ]
    words = (
        f"{len(prompts)} rows of qasper at {TOKENS:,} tokens, {NEW_TOKENS} new tokens an answer, kvpress on "
        f"transformers {theirs[0]['version']}; load average {load_before:.1f} at the start, "
        f"{os.getloadavg()[0]:.1f} at the end. {same} of {len(results)} answers are the same text. "
        "kvpress reads each prompt once a method, lcbench once in all; on an x86 CPU lcbench's float32 products are "
        "oneDNN's (models/linear.py), kvpress's those of torch as it comes, which is part of the ratio. Each side "
        "takes its own defaults but for the budget, so that texts need not be equal; the work is."
    )
    return f"{words}\n\n{table(lines)}"


def their_run_missing(python: str, reason: str) -> None:
    last = reason.strip().splitlines()[-1] if reason.strip() else "no reason given"
    raise SystemExit(
        f"kvpress cannot be imported by {python} ({last}). Make an environment for it (python -m venv ENV; "
        "ENV/bin/pip install kvpress) and name its interpreter: --python ENV/bin/python."
    )


def run_theirs(python: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What `their_run` prints, as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [python, str(Path(__file__).resolve()), "--job", str(file)]
        found = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                found.append(json.loads(line))
                print(f"kvpress {found[-1]['method']}: {found[-1]['wall']:.1f} s", flush=True)
        if process.returncode:
            raise SystemExit(process.returncode)
    return found


if __name__ == "__main__":
    main()

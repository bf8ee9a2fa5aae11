"""The example package installed into an empty folder and used; packages that are broken in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "lcbench-example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it, alone in a folder; offline."""
    pytest.importorskip("setuptools")
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for file in EXAMPLE.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts and ".egg-info" not in str(file):
            copy = source / file.relative_to(EXAMPLE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    words = ["install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", target, source]
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("no pip here")
    assert done.returncode == 0, done.stderr
    return target


COMMANDS = """
import contextlib, io, json, sys
from lcbench.cli import main
found = []
for words in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["lcbench", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def lcbench(site: Path, *commands: list[object]) -> list[Any]:
    """Exit code, stdout and stderr of commands, in one process that has a folder of packages in front."""
    path = os.pathsep.join([str(site), *(p for p in sys.path if p)])
    words = json.dumps([[str(word) for word in words] for words in commands])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", COMMANDS, words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_example_is_found_run_and_scored(installed: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", window=2048)
    words = ["--method", "full,evenly@budget=0.5", "--task", "sums@numbers=12", "--limit", 2, "--out", "run"]
    run, scored, looked = lcbench(
        installed, ["run", "--model", model, *words], ["score", "run", "--json"], ["doctor", "--json"]
    )
    assert run[0] == 0, run
    records = [json.loads(line) for file in Path("run/predictions").rglob("*.jsonl") for line in file.open()]
    assert {r["status"] for r in records} == {"ok"}
    ratios = sorted(round(r["kv_bytes_full"] / r["kv_bytes"], 1) for r in records)
    assert ratios == [1.0, 1.0, 2.0, 2.0]
    assert scored[0] == 0, scored
    assert "sums@numbers=12" in scored[1]
    checks = json.loads(looked[1])["checks"]
    told = {check["section"]: check["value"] for check in checks if check["name"] in ("methods", "tasks")}
    assert told["Methods"].endswith("1 of them from plug-ins")
    assert told["Tasks"].endswith("1 of them from plug-ins")


BROKEN = {
    "gone": ("methods", None, "No module named"),
    "bare": (
        "methods",
        "from lcbench import register_method\n@register_method('bare', paper='', traits=None)\nclass A: pass",
        "not a dataclass",
    ),
    "hookless": (
        "methods",
        "from dataclasses import dataclass\nfrom lcbench import register_method\n"
        "from lcbench.methods.base import Scorer, Traits\n"
        "@register_method('hookless', paper='', traits=Traits(family='evict'))\n@dataclass(frozen=True)\n"
        "class A(Scorer):\n    '''No score.'''",
        "has no score()",
    ),
    "taken": (
        "methods",
        "from dataclasses import dataclass\nfrom lcbench import register_method\n"
        "from lcbench.methods.base import Scorer, Traits\n"
        "@register_method('snapkv', paper='', traits=Traits(family='evict'))\n@dataclass(frozen=True)\n"
        "class A(Scorer):\n    def score(self, record): ...",
        "Two methods are named 'snapkv'",
    ),
    "leaving": ("tasks", "raise SystemExit('not today')", "not today"),
    "nameless": (
        "tasks",
        "from dataclasses import dataclass\nfrom lcbench import register_task\nfrom lcbench.tasks.base import Task\n"
        "@register_task('nameless')\n@dataclass(frozen=True)\nclass A(Task):\n"
        "    def load(self, home, limit=None): ...\n    def answer_tokens(self, home): ...\n"
        "    def prompt(self, row, home): ...",
        "has no benchmark, category, metric",
    ),
}  # fmt: skip


def test_broken_packages_cost_a_sentence_each_and_nothing_else(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name, (kind, code, _) in BROKEN.items():
        folder = site / f"plug_{name}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plug-{name}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[lcbench.{kind}]\n{name} = plug_{name}\n")
        if code is not None:
            (site / f"plug_{name}.py").write_text(code)
    looked, methods, tasks, *asked = lcbench(
        site,
        ["doctor", "--json"],
        ["list", "methods"],
        ["list", "tasks"],
        ["run", "--dry-run", "--method", "hookless"],
        ["run", "--dry-run", "--task", "leaving"],
    )
    checks = {check["name"]: check for check in json.loads(looked[1])["checks"]}
    for name, (_, _, words) in BROKEN.items():
        assert words in checks[name]["value"], name
        assert checks[name]["ok"] is False
        assert checks[name]["mend"]
    assert (methods[0], tasks[0]) == (0, 0)
    for code, _, err in asked:
        assert code == 2
        assert "plug-in" in err

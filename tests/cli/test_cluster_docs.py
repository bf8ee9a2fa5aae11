"""What docs/cluster.md gives to copy: scripts that bash reads and that give the right commands, YAML of its kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lcbench.cli import app
from lcbench.config.shard import Shard

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?m)(?:^ {4}.*\n|^\n(?= {4}))+", PAGE)]

RECORD = '#!/bin/bash\necho "RAY_ADDRESS=$RAY_ADDRESS LCBENCH_HOME=$LCBENCH_HOME $(basename "$0") $*" >> "$CALLS"\n'
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done
exec "$@"
"""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def block(with_: str) -> str:
    (found,) = [text for text in BLOCKS if with_ in text]
    return found


def carried_out(script: str, tmp_path: Path, **environment: str) -> list[str]:
    """The commands that a script gives, on a machine where Slurm's, Ray's and lcbench's are stand-ins."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    calls.touch()
    stand_ins = {"lcbench": RECORD, "ray": RECORD, "srun": SRUN, "sleep": "#!/bin/bash\n"}
    stand_ins["scontrol"] = "#!/bin/bash\nprintf 'node1\\nnode2\\nnode3\\nnode4\\n'\n"
    stand_ins["hostname"] = "#!/bin/bash\necho 10.0.0.7 fe80::1\n"
    stand_ins["sbatch"] = RECORD + "echo 4711\n"
    for name, text in stand_ins.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "script.sh").write_text(script)
    told = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HOME": "/home/me", "CALLS": str(calls), **environment}
    subprocess.run(["bash", "-n", "script.sh"], cwd=tmp_path, check=True)
    subprocess.run(["bash", "-eu", "script.sh"], cwd=tmp_path, env=told, check=True, timeout=60)
    return calls.read_text().splitlines()


def options_of(call: str) -> dict[str, Any]:
    """What lcbench understands of a command; a wrong option raises."""
    words = call.split("lcbench ", 1)[1].split()
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    return dict(command.make_context(words[0], words[1:]).params)


@needs_bash
def test_the_job_array_answers_each_part_once(tmp_path: Path) -> None:
    script = block("#SBATCH --array=1-8")
    shards = []
    for number in range(1, 9):
        folder = tmp_path / str(number)
        folder.mkdir()
        (call,) = carried_out(script, folder, SLURM_ARRAY_TASK_ID=str(number), RAY_ADDRESS="")
        assert "LCBENCH_HOME=/home/me/lcbench-home" in call
        found = options_of(call)
        assert (found["config"], found["out"]) == (Path("study.yaml"), Path("runs/study"))
        shards.append(Shard.parse(found["shard"]))
    assert shards == [Shard(number, 8) for number in range(1, 9)]


@needs_bash
def test_shards_are_merged_after_the_array(tmp_path: Path) -> None:
    first, second = carried_out(block("sbatch --parsable"), tmp_path, RAY_ADDRESS="", LCBENCH_HOME="")
    assert first.endswith("sbatch --parsable array.sh")
    assert "--dependency=afterok:4711 --wrap lcbench merge runs/study && lcbench score runs/study" in second
    assert (tmp_path / "logs").is_dir(), "Slurm does not make the folder of its logs"


@needs_bash
def test_the_ray_allocation(tmp_path: Path) -> None:
    calls = carried_out(
        block("--job-name=lcbench-ray"), tmp_path, SLURM_JOB_NODELIST="node[1-4]", SLURM_NNODES="4", RAY_ADDRESS=""
    )
    assert len(calls) == 4
    assert all("RAY_ADDRESS=10.0.0.7:6379 " in call for call in calls)
    assert calls[0].endswith("ray get-auth-token --generate")
    head, others = (next(call for call in calls if word in call) for word in ("--head", "--address"))
    assert "ray start --head --node-ip-address=10.0.0.7 --port=6379 --num-gpus=8" in head
    assert "ray start --address=10.0.0.7:6379 --num-gpus=8" in others
    found = options_of(next(call for call in calls if " lcbench run" in call))
    assert (found["engine"], found["workers"], found["ray_gpus"]) == ("ray", "32", "1")


def test_the_ray_job_has_the_fields_of_its_kind() -> None:
    """As KubeRay's definition of RayJob v1 has them (against which the whole file was checked once, field by field)."""
    job = yaml.safe_load(block("kind: RayJob"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == {"entrypoint", "shutdownAfterJobFinishes", "rayClusterSpec"}
    found = options_of(spec["entrypoint"])
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert found["workers"] == str(workers["replicas"])
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert set(head) == {"rayStartParams", "template"}
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert set(container) == {"name", "image", "env", "resources", "volumeMounts"}
        assert all(isinstance(one["value"], str) for one in container["env"]), "Kubernetes refuses a number"
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert set(container["resources"]) == {"requests", "limits"}
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_every_lcbench_command_of_the_page_is_one() -> None:
    lines = [line.split("#")[0].strip() for text in BLOCKS for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("lcbench ")]
    assert len(commands) > 5
    for command in commands:
        options_of(command)

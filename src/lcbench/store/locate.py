"""Where runs go by default, and which one is the latest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcbench.config.home import home
from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.errors import CannotWrite, NotARun
from lcbench.store.bench_folder import is_bench_only
from lcbench.store.files import make_folder, write_json
from lcbench.store.run_file import RUN_FILE

RUNS = "runs"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def default_run_path(spec: RunSpec | Mapping[str, Any]) -> Path:
    """``runs/<model>-<tasks>-<methods>-<hash>``, relative; the same spec always gives the same path.

    Only letters and digits of any script and ``. _ + -`` occur, and no ``-`` begins it; the name stays under 120
    characters and 240 bytes.
    """
    data = spec.to_dict() if isinstance(spec, RunSpec) else dict(spec)
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:6]
    parts = [
        _slug(_last_part(str(data["model"]["name"])), 30),
        _joined(data["tasks"], 30),
        _joined(data["methods"], 45),
    ]
    return Path(RUNS) / "-".join([*(part for part in parts if part), digest])


def study_paths(out: Path, models: Sequence[ModelSpec]) -> list[Path]:
    """A folder below ``out`` for each model of a study, named after it; the same models give the same names.

    Models whose names end alike are told apart by the owner of a hub id and by what was asked of them, else by a hash.
    """
    names = [_slug(_last_part(model.name), 60) or "model" for model in models]
    for longer in (_told_apart, _hashed):
        low = [name.lower() for name in names]  # file systems that know no case
        names = [
            longer(model) if low.count(name.lower()) > 1 else name for model, name in zip(models, names, strict=True)
        ]
    return [out / name for name in names]


def _told_apart(model: ModelSpec) -> str:
    asked = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name != "name"}
    usual = dataclasses.asdict(ModelSpec(model.name))
    name = model.name if _HUB_ID.fullmatch(model.name) else _last_part(model.name)
    return _slug("-".join([name, *(f"{k}-{v}" for k, v in asked.items() if v != usual[k])]), 100)


def _hashed(model: ModelSpec) -> str:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model), sort_keys=True).encode()).hexdigest()[:6]
    return f"{_slug(_last_part(model.name), 60) or 'model'}-{digest}"


def bench_path(model: str) -> Path:
    """``runs/bench-<model>``, relative: where `lcbench bench` goes when the user names no folder."""
    return Path(RUNS) / f"bench-{_slug(_last_part(model), 60) or 'model'}"


def latest_run(cwd: Path | str = ".") -> Path:
    """The newest run: of those in ``cwd/runs`` and the one `remember_run` noted, the one last started or continued.

    Folders that hold nothing but `lcbench bench` results do not count.

    Raises:
        NotARun: there is none.
    """
    candidates = list((Path(cwd) / RUNS).glob(f"*/{RUN_FILE}"))
    remembered = _remembered()
    if remembered is not None:
        candidates.append(remembered / RUN_FILE)
    dated = []
    for file in candidates:
        with contextlib.suppress(OSError):
            dated.append((file.stat().st_mtime_ns, str(file.parent)))
    if not dated:
        raise NotARun(
            "There is no run yet: nothing under runs/ here.",
            "Name a run directory, or make one: lcbench run --model demo --method full,kivi",
        )
    for _, folder in sorted(dated, reverse=True):
        if not _holds_bench_alone(Path(folder)):
            return Path(folder)
    return Path(max(dated)[1])


def remember_run(path: Path | str) -> None:
    """Note ``path`` as the last run, in ``LCBENCH_HOME/state/last-run.json``.

    A convenience only: where the folder cannot be written, nothing is noted and nothing is raised.
    """
    with contextlib.suppress(CannotWrite, OSError):
        make_folder(home() / "state")
        write_json(home() / "state" / "last-run.json", {"path": os.path.abspath(path)})


def _holds_bench_alone(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return is_bench_only(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
    return False


def _remembered() -> Path | None:
    try:
        data = json.loads((home() / "state" / "last-run.json").read_text(encoding="utf-8"))
        return Path(data["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _joined(names: Sequence[str], longest: int) -> str:
    """The names joined by ``+``: with their options where that fits, else without, else as many as fit."""
    whole = "+".join(_slug(name) for name in names)
    if _length(whole) <= longest:
        return whole
    slugs = list(dict.fromkeys(_slug(name.partition("@")[0], longest) for name in names))
    shown = 1
    while shown < len(slugs) and _length("+".join(slugs[: shown + 1])) <= longest:
        shown += 1
    rest = len(slugs) - shown
    return "+".join(slugs[:shown]) + (f"+{rest}more" if rest else "")


def _last_part(model: str) -> str:
    """A hub id or a path without what comes before its last separator."""
    return model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _slug(text: str, longest: int | None = None) -> str:
    """``text`` as part of a file's name: letters and digits of any script, ``.`` and ``_``, all else as ``-``."""
    plain = unicodedata.normalize("NFKC", text)
    kept = "".join(sign if sign in "._" or unicodedata.category(sign)[0] in "LMN" else "-" for sign in plain)
    short = re.sub("-+", "-", kept)
    while longest is not None and _length(short) > longest:
        short = short[:-1]
    return short.strip("-.")


def _length(text: str) -> int:
    """Characters, or half the bytes where these are more: file systems end names at 255 bytes."""
    return max(len(text), (len(text.encode()) + 1) // 2)

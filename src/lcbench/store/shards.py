"""A run in parts: RUN/shards/3-of-8 is a run directory of its own, with a file that says which samples are its share.

RUN/shards/batching.json          how large groups may be, for all shards; stored by the one that begins first
RUN/shards/3-of-8/shard.json      `ShardPlan`: the shard's groups, and a hash over those of all shards
RUN/shards/3-of-8/run.json, …     as any run
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.config.shard import Shard
from lcbench.errors import CannotWrite, NotARun, SpecMismatch
from lcbench.store.files import cannot_write, make_folder, write_json, write_text
from lcbench.store.identity import as_lines, differences, identity_differences
from lcbench.store.run_file import SHARDS, load_object, read_info

SHARD_FILE = "shard.json"
BATCHING_FILE = "batching.json"
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Share:
    """A group as files know it.

    Attributes:
        group: its index in the list of the whole run. ids: of its samples, in the order of their records.
    """

    group: int
    task: str
    methods: tuple[str, ...]
    ids: tuple[str, ...]

    def to_list(self) -> list[Any]:
        return [self.group, self.task, list(self.methods), list(self.ids)]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> Share:
        group, task, methods, ids = data
        return cls(int(group), str(task), tuple(map(str, methods)), tuple(map(str, ids)))


@dataclass(frozen=True)
class ShardPlan:
    """What a shard is to answer.

    Attributes:
        plan_sha256: over the groups of all shards and over what made them so large: equal for shards of one run.
        shares: its own groups.
    """

    shard: Shard
    plan_sha256: str
    shares: tuple[Share, ...]

    @property
    def samples(self) -> int:
        return sum(len(share.methods) * len(share.ids) for share in self.shares)

    @classmethod
    def of(cls, shard: Shard, every: Sequence[Share], limits: Mapping[str, int]) -> ShardPlan:
        """Args: every: group of the run, in order. limits: of batching.json."""
        text = json.dumps([limits, [share.to_list() for share in every]], sort_keys=True, ensure_ascii=True)
        own = tuple(share for share in every if shard.has(share.group))
        return cls(shard, hashlib.sha256(text.encode()).hexdigest(), own)

    def write(self, folder: Path) -> None:
        """Keep the plan in the shard's run directory, which may hold the same one already.

        Raises:
            SpecMismatch: it holds another one. CannotWrite.
        """
        if (folder / SHARD_FILE).exists() and read_plan(folder) != self:
            raise SpecMismatch(
                f"{folder} was begun with another division of the run (other limits in {BATCHING_FILE}).",
                "Delete this folder, or choose another --out.",
            )
        head = json.dumps({"shard": self.shard.number, "of": self.shard.of, "plan_sha256": self.plan_sha256})
        lines = ",\n".join("  " + json.dumps(share.to_list(), ensure_ascii=True) for share in self.shares)
        write_text(folder / SHARD_FILE, f'{head[:-1]}, "groups": [\n{lines}\n]}}\n')


def read_plan(folder: Path) -> ShardPlan:
    """The plan of a shard's run directory. Raises NotARun: there is none, or it is broken."""
    path = folder / SHARD_FILE
    try:
        data = load_object(path)
        shard = Shard(int(data["shard"]), int(data["of"]))
        return ShardPlan(shard, str(data["plan_sha256"]), tuple(map(Share.from_list, data["groups"])))
    except (FileNotFoundError, NotADirectoryError):
        what = "it is a file" if folder.exists() else "it does not exist"
        what = f"it has no {SHARD_FILE}" if folder.is_dir() else what
        step = "Name folders that `lcbench run --shard` wrote: RUN/shards/1-of-8 and so on."
        raise NotARun(f"{folder} is not a shard: {what}.", step) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        step = "Delete it and give the shard's command again: its answers are kept."
        raise NotARun(f"{path} cannot be read as the plan of a shard.", step) from None


def shards_of(run: Path) -> list[Path]:
    """The shard folders below a run, in the order of their numbers."""
    found = [path.parent for path in (run / SHARDS).glob(f"*/{SHARD_FILE}")]
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else 0 for part in path.name.split("-of-")])


def refuse_strangers(run: Path, shard: Shard, spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Refuse a shard that could not be merged with those that lie below ``run`` already.

    Raises:
        SpecMismatch: they are of another division, or of a run with other settings or inputs.
    """
    for folder in sorted((run / SHARDS).glob("*-of-*")):
        if folder.name == shard.folder:  # its own, which is compared when it is continued
            continue
        try:
            info = read_info(folder)
            there, inputs = dict(info["spec"]), dict(info["provenance"])
        except (NotARun, KeyError, TypeError, ValueError):
            continue  # just begun, or no shard: merging tells
        step = "Choose another --out, or delete that folder."
        of = folder.name.partition("-of-")[2]
        if of != str(shard.of):
            raise SpecMismatch(f"{folder} is one of {of} shards, and --shard {shard} one of {shard.of}.", step)
        changed = differences(there, spec) or identity_differences(inputs, provenance)
        if changed:
            lines = "".join(f"\n  {line}" for line in as_lines(changed))
            raise SpecMismatch(f"{folder} is a shard of another run:{lines}", step)


def shared_batching(run: Path, measured: Mapping[str, int]) -> dict[str, Any]:
    """How large groups may be in every shard below ``run``: what the first shard has stored, or ``measured`` now.

    Several shards may begin at once: a lock lets one of them store its limits, and the others read them.

    Raises:
        CannotWrite: no permission, no space, or no file locks there.
    """
    from filelock import FileLock, Timeout

    folder = run / SHARDS
    make_folder(folder)
    try:
        with FileLock(str(folder / ".lock"), timeout=_WAIT_SECONDS):
            for path in (folder / BATCHING_FILE, run / BATCHING_FILE):
                try:
                    found = load_object(path)
                    if all(int(found[name]) >= 1 for name in measured):
                        return found
                except (OSError, ValueError, KeyError, TypeError, RecursionError):
                    continue
            write_json(folder / BATCHING_FILE, measured)
            return dict(measured)
    except Timeout:
        raise CannotWrite(f"{folder} has been locked for a minute.", "Give the command again.") from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    except NotImplementedError:
        raise CannotWrite(f"The file system of {folder} has no file locks.", "Choose another --out.") from None

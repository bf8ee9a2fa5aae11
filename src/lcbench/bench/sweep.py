"""All cells of a bench: method x prompt length x batch size, each a line of efficiency.jsonl; what is there is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lcbench import __version__
from lcbench.bench.capacity import ByteModel, probe, try_largest
from lcbench.bench.efficiency import Cell, Workload, check, measure
from lcbench.config.spec import ModelSpec
from lcbench.engine.generate import check_chunk
from lcbench.engine.outcome import sentence
from lcbench.errors import BadValue, LcbenchError, ModelError, StoreError, UsageError
from lcbench.measure.bandwidth import copy_bandwidth
from lcbench.measure.device import kind_of
from lcbench.measure.machine import machine, total_bytes
from lcbench.measure.memory import available_bytes
from lcbench.methods.base import Method, require
from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel, ModelInfo
from lcbench.models.load import describe, load
from lcbench.models.place import AUTO_MAP
from lcbench.models.random_weights import describe_random, load_random
from lcbench.store.provenance import software
from lcbench.store.rundir import RunDirectory

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchSpec:
    """What to measure.

    Attributes:
        model: which, and how it is put in memory. random: its name is an architecture (`models.random_weights`).
        methods: as text. lengths: prompt lengths in tokens. batches: sequences decoded together.
        new_tokens, repeats, prefill_chunk: see `efficiency.Workload`.
        max_batch: also find the largest batch that fits ``memory`` bytes; None is all memory of the GPU or machine.
    """

    model: ModelSpec
    random: bool = False
    methods: tuple[str, ...] = ("full", "kivi")
    lengths: tuple[int, ...] = (1024,)
    batches: tuple[int, ...] = (1,)
    new_tokens: int = 32
    repeats: int = 3
    prefill_chunk: int | None = None
    max_batch: bool = False
    memory: int | None = None

    def workloads(self) -> Iterator[Workload]:
        for length in self.lengths:
            for batch in self.batches:
                yield Workload(length, batch, self.new_tokens, self.repeats, self.prefill_chunk)


class Bench:
    """A resolved bench; weights are loaded when the first cell is to be measured.

    Args:
        home: LCBENCH_HOME. say: told one sentence when something takes long.

    Raises:
        UnknownName, BadValue, UsageError, ModelError: with the next step; before anything is measured.
    """

    def __init__(self, spec: BenchSpec, home: Path, say: Say) -> None:
        self.spec, self._home, self._say = spec, home, say
        if spec.model.device == AUTO_MAP:
            raise BadValue(
                f"The bench measures one GPU, and --device {AUTO_MAP} is all of them.", "Write --device cuda:0."
            )
        methods = [resolve(text) for text in spec.methods]
        if spec.random:
            self.info: ModelInfo = describe_random(spec.model)
        else:
            turned_by = [method.id for method in methods if method.turns]
            self.info = describe(spec.model, home, say=say, turned_by=turned_by)[0]
        check_chunk(self.info, spec.prefill_chunk)
        _check_lengths(self.info, spec, say)
        if spec.random:
            _check_memory(self.info)
        for one in methods:
            require(one, self.info.shape(), self.info.name)
        self.methods: list[Method] = [one.bind(self.info, home) for one in methods]
        for one in {m.id: m for m in self.methods}.values():
            if sum(m.id == one.id for m in self.methods) > 1:
                raise UsageError(f"The method {one.id} is given twice with the same parameters.", "Give it once.")
        for one in self.methods:
            check(self.info, one)
        self.machine = machine(self.info.device)
        self.memory = spec.memory or total_bytes(self.info.device)
        if spec.memory is not None and kind_of(self.info.device) == "cuda":
            most = total_bytes(self.info.device)
            if spec.memory > most:
                raise BadValue(
                    f"--memory {spec.memory / 2**30:.1f} GiB is more than the GPU has ({most / 2**30:.1f} GiB).",
                    "Ask for less, or leave it out for all of it.",
                )
        self._loaded: LoadedModel | None = None
        self._bandwidth = 0.0

    def provenance(self) -> dict[str, Any]:
        """For the run.json of a folder that holds nothing but the bench."""
        model = {k: v for k, v in self.info.to_dict().items() if k != "versions"} | {"identity": self.info.identity}
        return {**software(), "model": model, "tasks": {}, "methods": {}}

    def rows(self, run: RunDirectory, *, again: bool = False) -> Iterator[tuple[Row, bool]]:
        """Measure what is not there yet, and write each line the moment it exists.

        Args:
            again: measure also what is there.

        Yields:
            The lines in order, with whether they were there already. A cell that fails is a line with ``error``.

        Raises:
            StoreError: the run directory cannot be written. ModelError: the model cannot be loaded.
        """
        there = {} if again else {row.get("key"): row for row in run.efficiency() if row.get("status") == "ok"}

        def one(what: Row, make: Callable[[], Row]) -> tuple[Row, bool]:
            what = {**what, "key": self._key(what)}
            if what["key"] in there:
                return there[what["key"]], True
            row = {**what, **self._attempt(make), **self._stamp()}
            run.append_efficiency(row)
            return row, False

        for work in self.spec.workloads():
            for method in self.methods:
                yield one(self._cell_facts(method, work), lambda m=method, w=work: self._cell(m, w))  # type: ignore[misc]
        if not self.spec.max_batch:
            return
        for length in self.spec.lengths:
            work = Workload(length, 1, self.spec.new_tokens, self.spec.repeats, self.spec.prefill_chunk)
            for method in self.methods:
                facts = {**self._facts(method, work), "kind": "max_batch", "memory_bytes": self.memory}
                row, kept = one(facts, lambda m=method, w=work: self._largest(m, w))  # type: ignore[misc]
                yield row, kept
                if row.get("tried") and row.get("max_batch"):
                    full = replace(work, batch=row["max_batch"])
                    yield one(self._cell_facts(method, full), lambda m=method, w=full: self._cell(m, w))  # type: ignore[misc]

    # -- what a line is about ----------------------------------------------------------------------------------------

    def _facts(self, method: Method, work: Workload) -> Row:
        info = self.info
        return {
            "method": method.id,
            "parameters": method.parameters,
            "model": info.name,
            "weights": "random" if self.spec.random else "checkpoint",
            "identity": info.identity,
            "dtype": info.dtype,
            "device": info.device,
            "attn": info.attn,
            "load_in": info.load_in,
            "prompt_tokens": work.prompt_tokens,
            "new_tokens": work.new_tokens,
            "repeats": work.repeats,
            "prefill_chunk": work.prefill_chunk,
            "seed": work.seed,
            "machine": self.machine,
            "versions": {"lcbench": __version__, **info.versions},
        }

    def _cell_facts(self, method: Method, work: Workload) -> Row:
        return {"kind": "cell", **self._facts(method, work), "batch": work.batch}

    @staticmethod
    def _key(facts: Row) -> str:
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @staticmethod
    def _stamp() -> Row:
        return {"measured": datetime.now(timezone.utc).isoformat(timespec="seconds")}

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _attempt(self, make: Callable[[], Row]) -> Row:
        """A cell's numbers, or in a sentence why there are none."""
        self._ready()
        try:
            return {"status": "ok", "error": None, **make()}
        except StoreError:
            raise
        except LcbenchError as error:
            problem = error.message
        except Exception as error:
            problem = sentence(error)
        return {"status": "error", "error": problem}

    def _ready(self) -> LoadedModel:
        if self._loaded is None:
            self._say(f"Loading {self.info.name} …")
            self._loaded = load_random(self.spec.model) if self.spec.random else load(self.spec.model, self._home)
            self._bandwidth = copy_bandwidth(self.info.device)
        return self._loaded

    def _cell(self, method: Method, work: Workload) -> Row:
        loaded = self._ready()
        self._say(f"{method.id}, {work.prompt_tokens:,} tokens x {work.batch} …")
        return cell_row(measure(loaded, method, work), method, loaded, self._bandwidth)

    def _largest(self, method: Method, work: Workload) -> Row:
        loaded = self._ready()
        self._say(f"{method.id}, {work.prompt_tokens:,} tokens: the largest batch in {self.memory / 2**20:,.0f} MiB …")
        model: ByteModel = probe(loaded, method, work)
        predicted = model.largest(self.memory)
        tried = kind_of(loaded.info.device) == "cuda"
        found = try_largest(loaded, method, work, self.memory, predicted) if tried else predicted
        sizes = {"least_bytes": model.peak(1), "byte_model": asdict(model)}
        return {"max_batch": found, "predicted": predicted, "tried": tried, **sizes}


def _check_lengths(info: ModelInfo, spec: BenchSpec, say: Say) -> None:
    """Refuse lengths at which a model has no positions, and tell of those that it was not trained for."""
    longest = max(spec.lengths) + spec.new_tokens
    if longest - 1 <= info.window or info.state is not None:  # the last new token is not fed back
        return
    if info.rope.kind == "none":
        raise BadValue(
            f"{info.name} has learned positions for {info.window:,} tokens, and {max(spec.lengths):,} with "
            f"{spec.new_tokens} new ones are {longest:,}.",
            "Ask for shorter --lengths.",
        )
    say(
        f"{info.name} was trained for {info.window:,} tokens; at {max(spec.lengths):,} its speed and memory are "
        "measured, and what it says there means nothing."
    )


def _check_memory(info: ModelInfo) -> None:
    """Refuse random weights that cannot be made here."""
    free = available_bytes(info.device)
    if info.weight_bytes > free:
        raise ModelError(
            f"The weights of {info.name} in {info.dtype} take {info.weight_bytes / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free on {info.device}.",
            "Use --dtype bfloat16, a smaller architecture or another machine.",
        )


def cell_row(cell: Cell, method: Method, loaded: LoadedModel, bandwidth: float) -> Row:
    """A cell as the numbers of a line.

    Args:
        bandwidth: bytes a second that a copy moves on the same device, see `measure.bandwidth`.
    """
    kv_bytes = cell.kv_bytes
    if method.traits.memory == "simulated":
        kv_bytes = cell.work.batch * method.logical_nbytes(loaded.shape(), cell.work.prompt_tokens)
    return {
        "time_to_first_token": cell.time_to_first_token,
        "decode_tokens_per_second": cell.decode_tokens_per_second,
        "samples_per_second": cell.samples_per_second,
        "seconds": [{"first_token": list(p.first), "prefill": p.prefill, "decode": p.decode} for p in cell.passes],
        "memory": method.traits.memory,
        "weight_bytes": cell.weight_bytes,
        "activation_bytes": cell.peak.activations,
        "kv_peak_bytes": cell.peak.kv,
        "peak_bytes": cell.peak_bytes,
        "parts": {name: asdict(phase) for name, phase in cell.phases.items()},
        "kv_bytes": kv_bytes,
        "kv_held_bytes": cell.kv_bytes,
        "kv_read_bytes": cell.passes[-1].kv_read,
        "kv_end_bytes": cell.kv_end_bytes,
        "kv_bytes_full": cell.kv_bytes_full,
        "resident_peak_bytes": cell.resident_bytes,
        "copy_bytes_per_second": bandwidth,
        "step_bytes": cell.step_bytes,
        "limit_tokens_per_second": cell.work.batch * bandwidth / cell.step_bytes,
    }

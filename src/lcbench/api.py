"""lcbench from Python: what ``import lcbench`` offers, loaded when it is first used.

lcbench.load_model    a model, ready for every method
lcbench.generate      answers to prompts with a method, and what its cache took
lcbench.applied       a method under transformers' own model.generate
lcbench.run           what `lcbench run` does; lcbench.score and lcbench.compare likewise
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcbench.config.home import home as lcbench_home
from lcbench.config.spec import ModelSpec, make_spec
from lcbench.errors import BadValue, UnknownName, UsageError

if TYPE_CHECKING:
    from lcbench.methods.base import Method
    from lcbench.models.info import LoadedModel
    from lcbench.reporting.comparison import Comparison

Say = Callable[[str], None]


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Generation:
    """An answer, and what the cache behind it took.

    Attributes:
        text: of the answer, special tokens removed. token_ids: all new ones, the closing one included.
        stopped_by: "eos" or "length". prompt_tokens, new_tokens: read and made.
        kept_tokens: prompt tokens held after compression, mean over layers and KV heads.
        kv_bytes, kv_bytes_full: of every tensor held right after compression, and of the uncompressed cache.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped_by: str
    prompt_tokens: int
    new_tokens: int
    kept_tokens: float
    kv_bytes: int
    kv_bytes_full: int


@dataclass(frozen=True)
class Finished:
    """What `run` did.

    Attributes:
        path: the run directory. written, reused: records made now, and found there.
        failed: samples whose latest record is an error. errors: a line for each.
    """

    path: Path
    written: int
    reused: int
    failed: int
    errors: tuple[str, ...] = ()


def load_model(
    name: Path | str = "demo", *, home: Path | str | None = None, say: Say = _silent, **options: Any
) -> LoadedModel:
    """Load a model: the demo model, a hub id, a local folder or a GGUF file.

    Args:
        home: LCBENCH_HOME. say: told sentences about what takes long.
        options: fields of `lcbench.config.spec.ModelSpec`: dtype, device, attn, load_in, revision, chat, ….

    Raises:
        LcbenchError: it cannot be found, read or served; says why and what to do.
    """
    from lcbench.models.load import load

    return load(_model_spec(name, options), _home(home), say)


def generate(
    model: LoadedModel | str,
    prompts: Sequence[str],
    method: Method | str = "full",
    *,
    max_new_tokens: int = 64,
    chat: bool = False,
    chat_format: str = "auto",
    seed: int = 42,
    home: Path | str | None = None,
) -> list[Generation]:
    """Greedy answers to prompts with a method, each prompt read and answered alone.

    What a method learns first (`lift`) is the whole prompt; one beyond the window is then read cut in its middle.

    Args:
        model: from `load_model`, or a name for it. prompts: texts (a single one counts as a list of one).
        method: as on the command line, e.g. ``"snapkv@budget=0.25"``.
        chat: wrap each prompt in the model's chat format. chat_format: "auto", "official", "none" or a Jinja file.

    Raises:
        BadValue: an argument of the wrong kind, or a prompt that does not fit the window with its answer.
        UnknownName, UsageError: a method that is none.
        ModelError: a method that cannot serve the model.
    """
    from lcbench.engine.single import answer_one, read_of
    from lcbench.engine.stacked import Rules

    place = _home(home)
    _whole("max_new_tokens", max_new_tokens, least=1)
    _seed(seed)
    texts = _texts(prompts)
    loaded = load_model(model, home=place) if isinstance(model, str) else _loaded(model)
    bound = _bound(method, loaded, place)
    answers = []
    for lesson in _encoded(loaded, texts, bound, chat, chat_format, place):
        window = bound.window_of(loaded.info.window)
        ids = read_of(lesson, bound, window, max_new_tokens)
        if window is not None and not loaded.info.unbounded and len(ids) + max_new_tokens > window:
            raise BadValue(
                f"A prompt of {len(ids)} tokens and an answer of {max_new_tokens} do not fit the window of {window}.",
                "Shorten the prompt, or ask for fewer new tokens.",
            )
        made = answer_one(loaded, bound, ids, Rules(max_new_tokens), seed=seed, lesson=lesson)
        new = made.generated
        text = str(loaded.tokenizer.decode(new.ids, skip_special_tokens=True))
        answers.append(
            Generation(
                text, tuple(new.ids), new.stopped_by, len(ids), new.new_tokens, made.kept_tokens, made.kv_bytes,
                made.kv_bytes_full,
            )
        )  # fmt: skip
    return answers


@contextlib.contextmanager
def applied(model: Any, method: Method | str, *, seed: int = 42, home: Path | str | None = None) -> Iterator[Any]:
    """A method under transformers' own ``model.generate``, until the context is left; see `lcbench.engine.applied`.

    Args:
        model: a transformers decoder, or what `load_model` gives. method: as on the command line.

    Yields:
        The transformers model.
    """
    from lcbench.engine import applied as engine

    _seed(seed)
    with engine.applied(model, _method(method), _home(home), seed=seed) as plain:
        yield plain


def run(
    model: str = "demo",
    method: str | Sequence[str] = "full",
    task: str | Sequence[str] | None = None,
    *,
    out: Path | str | None = None,
    home: Path | str | None = None,
    say: Say = _silent,
    concurrency: int = 8,
    timeout: float = 600.0,
    **options: Any,
) -> Finished:
    """Answer tasks with methods, as `lcbench run`; the same call again continues and finishes the run.

    Args:
        out: run directory; default a name under runs/ that follows from what is asked.
        concurrency, timeout: of a model behind an address (``model="openai:NAME", base_url=…``).
        options: the keys of a `lcbench run --config` file: limit, max_input_tokens, dtype, base_url, ….

    Raises:
        LcbenchError: with what to do. Samples that fail are no exception: they are counted in the result.
    """
    if not isinstance(model, str):
        raise BadValue(f"model is {_kind(model)}, and a run wants a name.", "Give a hub id, a folder, a GGUF file.")
    place, folder = _home(home), None if out is None else _path("out", out)
    asked = {"model": model, "methods": method, **options}
    spec = make_spec(asked if task is None else {**asked, "tasks": task})
    session: Any
    if spec.model.served:
        from lcbench.remote.session import Calls, open_remote

        session = open_remote(spec, place, Calls(concurrency, timeout), say=say)
    else:
        from lcbench.engine.session import open_session

        session = open_session(spec, place, say=say)
    path = session.default_path() if folder is None else folder
    with session.open_run(path) as running:
        outcome = running.execute()
    return Finished(path, outcome.written, outcome.reused, outcome.failed, tuple(outcome.errors))


def score(path: Path | str | Finished, **options: Any) -> dict[str, Any]:
    """Scores of a run, or of LongBench predictions, as plain data (the layout of scores.json); a run keeps them.

    Args:
        path: run directory, what `run` gave, or a file or folder of official predictions.
        options: fields of `lcbench.scoring.run.ScoreOptions`; ``longscore=True`` is that with all defaults.

    Raises:
        LcbenchError: nothing to score there, or a broken file.
    """
    from lcbench.scoring.longscore.result import LongScoreOptions
    from lcbench.scoring.run import DEFAULTS, ScoreOptions, score_path
    from lcbench.store.rundir import RunDirectory

    place = path.path if isinstance(path, Finished) else _path("path", path)
    known = [f.name for f in fields(ScoreOptions)]
    if isinstance(wanted := options.get("longscore"), bool):
        options["longscore"] = LongScoreOptions(wanted)
    for name, value in options.items():
        if name not in known:
            raise UnknownName("option", name, known)
        default = getattr(DEFAULTS, name)
        if type(value) is not type(default) and not (name == "jobs" and type(value) is int):
            wants = "a whole number" if name == "jobs" else f"such as {default!r}"
            raise BadValue(f"{name} is {_kind(value)}.", f"Give {wants}, or leave {name} out.")
    table = score_path(place, ScoreOptions(**options), None, None)
    scores: dict[str, Any] = table.to_dict()
    if table.source == "run":
        RunDirectory.open(place).write_scores(scores)
    return scores


def compare(
    first: Path | str, second: Path | str, *, run: Path | str | Finished | None = None, show: int = 5
) -> Comparison:
    """Whether two methods really differ, sample by sample; ``.verdict()`` says it in a sentence.

    Args:
        first, second: method ids of ``run``, or ``RUN::METHOD`` of two runs, or two run directories.
        show: how many of the samples that changed most are kept.

    Raises:
        BadValue: they cannot be paired, with the reason.
    """
    from lcbench.reporting.comparison import compare_all
    from lcbench.reporting.sides import pairs_of
    from lcbench.store.locate import latest_run

    words = [str(_path("a side", side)) for side in (first, second)]
    if run is not None:
        words = [str(run.path if isinstance(run, Finished) else _path("run", run)), *words]
    found = compare_all(pairs_of(words, None, latest_run), show=show)
    if len(found) != 1:
        raise UsageError(f"{first} and {second} are {len(found)} comparisons.", "Name two methods.")
    return found[0]


# -- pieces ----------------------------------------------------------------------------------------------------------


def _model_spec(name: Path | str, options: Mapping[str, Any]) -> ModelSpec:
    if not isinstance(name, str | os.PathLike):  # None would be the default of a study, the demo model
        raise BadValue(f"name is {_kind(name)}, not the name of a model.", "Give a hub id, a folder or a GGUF file.")
    known = [f.name for f in fields(ModelSpec) if f.name != "name"]
    for option in options:
        if option not in known:  # a run's, which would do nothing here
            raise UnknownName("option", option, known, where=" of load_model")
    return make_spec({**options, "model": os.fspath(name)}).model


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _home(home: Path | str | None) -> Path:
    return lcbench_home() if home is None else _path("home", home)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise BadValue(f"{name} is {_kind(value)}, not a path.", "Give text or a pathlib.Path.")
    return Path(value)


def _whole(name: str, value: Any, least: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValue(f"{name} is {_kind(value)}, not a whole number.", "Give a whole number.")
    if least is not None and value < least:
        raise BadValue(f"{name}={value} is below the least value {least}.", f"Use {least} or more.")


def _seed(value: Any) -> None:
    _whole("seed", value)
    if not -(2**63) <= value < 2**64:
        raise BadValue(f"seed={value} does not fit 64 bits.", "Give a smaller number, e.g. 42.")


def _texts(prompts: Any) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Iterable) else [prompts]
    for text in texts if not isinstance(prompts, Mapping | bytes) else [prompts]:
        if not isinstance(text, str):
            raise BadValue(f"A prompt is {_kind(text)}, not text.", "Give a text, or a list of texts.")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise BadValue("A prompt holds half of a surrogate pair, which is no character.", "Leave it out.")
    return texts


def _loaded(model: Any) -> LoadedModel:
    from lcbench.models.info import LoadedModel

    if not isinstance(model, LoadedModel):
        raise BadValue(
            f"model is {_kind(model)}, neither a name nor what lcbench.load_model gives.",
            "Load it with lcbench.load_model; lcbench.applied takes the models of transformers.",
        )
    return model


def _method(method: Method | str) -> Method:
    from lcbench.methods.base import Method
    from lcbench.methods.registry import resolve

    if not isinstance(method, str | Method):
        raise BadValue(f"method is {_kind(method)}, not the name of one.", 'Write one name, e.g. "kivi@bits=2".')
    return resolve(method) if isinstance(method, str) else method


def _bound(method: Method | str, loaded: LoadedModel, home: Path) -> Method:
    from lcbench.methods.base import require

    chosen = _method(method)
    require(chosen, loaded.shape(), loaded.info.name)
    bound = chosen.bind(loaded.info, home)
    bound.check(loaded.shape())
    return bound


def _encoded(
    loaded: LoadedModel, prompts: Sequence[str], method: Method, chat: bool, chat_format: str, home: Path
) -> list[list[int]]:
    """Prompts as token ids, after a method that shortens their text."""
    from lcbench.engine.rewriting import Rewriters
    from lcbench.methods.rewriting import PromptText
    from lcbench.models.chat import encode_prompt

    texts = list(prompts)
    if method.rewriter is not None:
        rewriters = Rewriters(ModelSpec(name=loaded.info.name, device=loaded.info.device), home)
        try:
            texts = [rewriters.rewrite(method.rewriter, PromptText(t, (0, len(t)))).text for t in texts]
        finally:
            rewriters.close()
    encoded = [encode_prompt(loaded, text, chat=chat, chat_option=chat_format).ids for text in texts]
    if not all(encoded):
        raise BadValue("A prompt has no tokens.", "Write something in it.")
    return encoded

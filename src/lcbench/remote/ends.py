"""How an answer is made to end where the task wants it, in the words that servers understand.

A task's answer ends at a line feed in two ways. Where the scorer reads one line, nothing behind it matters. Where the
task stops there (samsum), the benchmark also forbids the end as the first token, without which small models go on in
the style of the prompt. Servers know the first as ``stop``; for the second there is a field of vLLM's and SGLang's, and
``logit_bias`` for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lcbench.config.spec import Api
from lcbench.endpoint.client import NoReply
from lcbench.remote.asking import Answer, Asker
from lcbench.tasks.base import Task
from lcbench.tasks.facts import facts_of

_LINE = "\n"
_NEVER = -100  # OpenAI's bias for a token that must not come


@dataclass(frozen=True)
class Ends:
    """Where the answers of a task end.

    Attributes:
        stop: texts that end an answer. tokens: ids that end it and may not be its first; empty where none is forbidden,
            or where no tokenizer is named that would tell them.
        tokenizer: the named one, or None.
    """

    stop: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    tokenizer: Any = None

    @classmethod
    def of(cls, task: Task, tokenizer: Any) -> Ends:
        """As the task says."""
        facts = facts_of(task.name)
        one_line = task.early_stop and facts is not None and facts.cut_first_line
        if task.stop != "newline":
            return cls((_LINE,) if one_line else (), (), tokenizer)
        if tokenizer is None or not task.min_new_tokens:
            return cls((_LINE,), (), tokenizer)
        feed = tokenizer.encode(_LINE, add_special_tokens=False)[-1:]  # as `engine.answer` finds it, and LongBench
        return cls((_LINE,), tuple(int(i) for i in feed), tokenizer)


def ask(asker: Asker, api: Api, prompt: Any, ends: Ends, most: int) -> tuple[Answer, int]:
    """The answer to a prompt, and how many questions it took.

    Where an answer ends at a line feed a model may begin with one, and the server has then stopped before the answer
    began: it is asked again. Scorers skip such line feeds, or the task forbids them.

    Args:
        prompt: text, or token ids for "token-ids". most: tokens of the answer.

    Raises:
        NoReply: this prompt got none. UsageError, NetworkError: going on makes no sense.
    """
    answer = asker.ask(api, prompt, max_tokens=most, stop=ends.stop)
    if not ends.stop or answer.text.strip() or answer.finish_reason == "length":
        return answer, 1
    if ends.tokens and api != "chat":
        found = _by_stop_tokens(asker, api, prompt, ends, most)
        if found is not None and found.text and not found.text.startswith(_LINE):
            return found, 2
        biased = _by_bias(asker, api, prompt, ends, most)
        if biased is not None:
            return biased, 4
    whole = asker.ask(api, prompt, max_tokens=most)
    return _first_line(whole), 2


def _by_stop_tokens(asker: Asker, api: Api, prompt: Any, ends: Ends, most: int) -> Answer | None:
    """By fields that vLLM, SGLang and `lcbench serve` know: as the benchmark does it. None: the server refuses them;
    one that does not know them may also pass them over."""
    more = {"stop_token_ids": list(ends.tokens), "min_tokens": 1}
    return _if_taken(asker, api, prompt, most, (), more)


def _by_bias(asker: Asker, api: Api, prompt: Any, ends: Ends, most: int) -> Answer | None:
    """The first token alone, with the ends ruled out, and then the rest. None: the server does not do that."""
    eos = ends.tokenizer.eos_token_id
    forbidden = [*ends.tokens, *([int(eos)] if isinstance(eos, int) else [])]
    first = _if_taken(asker, api, prompt, 1, (), {"logit_bias": {str(i): _NEVER for i in forbidden}})
    if first is None or not first.text or first.text.startswith(_LINE) or "\N{REPLACEMENT CHARACTER}" in first.text:
        return None
    if most == 1:
        return first
    begun: str | Sequence[int] = (
        prompt + first.text
        if isinstance(prompt, str)
        else [*prompt, *ends.tokenizer.encode(first.text, add_special_tokens=False)]
    )
    rest = asker.ask(api, begun, max_tokens=most - 1, stop=ends.stop)
    usage = dict(first.usage)
    if "completion_tokens" in usage and "completion_tokens" in rest.usage:
        usage["completion_tokens"] += rest.usage["completion_tokens"]
        if "prompt_tokens" in usage:
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    else:  # a part of them is no count
        usage = {name: count for name, count in usage.items() if name == "prompt_tokens"}
    return Answer(first.text + rest.text, rest.finish_reason, usage)


def _if_taken(
    asker: Asker, api: Api, prompt: Any, most: int, stop: Sequence[str], more: dict[str, Any]
) -> Answer | None:
    """The answer to a question with fields that not every server knows; None where it refuses them."""
    try:
        return asker.ask(api, prompt, max_tokens=most, stop=stop, more=more)
    except NoReply as error:
        if error.status in (400, 422):
            return None
        raise


def _first_line(answer: Answer) -> Answer:
    """Up to the first line feed behind the leading ones."""
    start = len(answer.text) - len(answer.text.lstrip(_LINE))
    end = answer.text.find(_LINE, start)
    return replace(answer, text=answer.text if end < 0 else answer.text[:end])

"""From generated ids to the text that is scored, and when that text can no longer change its score.

Both need the tokenizer: the rule about lines is text alone (`tasks.early_stop`), but ids have to be shown to be text
that stays as it is when more ids follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lcbench.models.info import LoadedModel
from lcbench.models.official_chat import clean_answer
from lcbench.tasks.base import Task
from lcbench.tasks.early_stop import finished

# A token of tokenizers that spell rare characters byte by byte (Llama 2, Mistral, Gemma); no text holds this byte.
_NEVER_TEXT = "<0xFF>"


def text_of(loaded: LoadedModel, ids: Sequence[int]) -> str:
    """The answer as it goes into the record: special tokens removed, cleaned where the official script cleans."""
    text = str(loaded.tokenizer.decode(list(ids), skip_special_tokens=True))
    return clean_answer(loaded.info.answer_rule, text)


def scorer_stop(loaded: LoadedModel, task: Task) -> Callable[[list[int]], bool] | None:
    """Whether the scorer would read no further than the ids so far, whatever follows; None where it reads everything.

    Line feeds of Llama 2 and its kin are byte tokens, and a run of byte tokens is shown as text only when all of it is
    UTF-8: a line feed followed by half of a character is not a line feed any more, but two replacement characters. So
    with such a tokenizer an answer is finished when it is so even with a byte behind it that no text can hold.
    """
    if not task.early_stop:
        return None
    probe = _byte_token(loaded)

    def stop(ids: list[int]) -> bool:
        done = finished(task.name, text_of(loaded, ids))
        return done and finished(task.name, text_of(loaded, [*ids, *probe]))

    return stop


def _byte_token(loaded: LoadedModel) -> list[int]:
    number = loaded.tokenizer.get_vocab().get(_NEVER_TEXT)
    return [] if number is None else [int(number)]

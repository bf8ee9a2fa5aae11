"""LLMLingua-2: an encoder says of every word how much it is worth, and the best ones stay."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from lcbench.config.options import param
from lcbench.errors import ModelError
from lcbench.methods.base import PromptTransform, Traits
from lcbench.methods.registry import method
from lcbench.methods.rewriting import Helper, PromptText
from lcbench.models.classifier import TokenClassifier

LARGE = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
SMALL = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
NAMES = {"large": LARGE, "small": SMALL}

_WINDOW = 512
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Word:
    """A word of a chunk.

    Attributes:
        text: its tokens joined as the encoder writes them. values: of each token, its probability of being kept.
    """

    text: str
    values: list[Any]

    @property
    def mean(self) -> Any:
        return sum(self.values) / len(self.values)


@method(
    "llmlingua2",
    paper="arXiv:2403.12968",
    traits=Traits(family="prompt", prefill="own", training="token classifier (published)"),
)
@dataclass(frozen=True)
class LLMLingua2(PromptTransform):
    """LLMLingua-2 (arXiv:2403.12968; rules as in microsoft/LLMLingua `prompt_compressor.py`, with the settings of
    henryzhongsc/longctx_bench, arXiv:2407.01527).

    A token classifier reads the context in chunks of at most 510 of its tokens that end at a full stop or line break
    where there is one. A word is worth the mean probability of its tokens; force tokens are worth 1, one that repeats
    the last with nothing above the threshold between them 0. Of each chunk those words stay that are worth more than
    the percentile ``int(100 (1 - rate) + 1)`` of its words, each counted as often as it has tokens. What is left is
    written with the classifier's own rule for spaces; chunks follow each other without a separator. The rate holds
    chunk by chunk; spaces are lost where the classifier's tokenizer loses them, and characters that it does not know.

    `preset` 2x, 4x, 6x and 8x are the workbench's rates 1/2 to 1/8: force tokens newline . ! ? and comma, consecutive
    ones dropped, chunks ending at . and newline. The `context` field alone is compressed; instruction and question
    stay as they are. `scope=prompt` compresses all of it, as the workbench does for its passkey test.

    `model` is a hub id, a local folder, ``large`` (XLM-RoBERTa, the workbench's) or ``small`` (multilingual BERT).
    `wrapper=published` puts around each chunk what the published code puts there: its data set is always built for
    BERT, so XLM-RoBERTa reads its unknown token where it was trained on its own end marks; ``own`` gives it these.
    `count=gpt-3.5` weighs words by tokens of that tokenizer, as the published code; it needs the package tiktoken
    and its vocabulary. The default weighs by the classifier's own tokens (our choice: nothing else to download).
    A force token that is not one token of the classifier (for XLM-RoBERTa newline and comma) is read as an added one.
    Its embedding is the mean of all others, which is what the published code gets from transformers 4.46 and later;
    with older versions it draws it, so that outputs around such tokens differ from those.
    """

    proof: ClassVar[str] = (
        "Kept words of a small random XLM-RoBERTa-like and a BERT-like classifier against the public package llmlingua "
        "0.2.2 on the same weights, with embeddings for the added tokens and without: equal on real LongBench "
        "contexts, English, Chinese and code, at 2x to 8x (when the goldens were made; transformers 4.46 and 5.23), "
        "and on texts of our own (in every test run)."
    )
    revision: ClassVar[int] = 2

    preset: Literal["2x", "4x", "6x", "8x"] = param("2x", "the workbench's rates: 2x, 4x, 6x or 8x")
    rate: float | None = param(None, "share of the words that stay; none: by preset", minimum=0.001, maximum=1)
    model: str = param("large", "large, small, a hub id or a local folder of a token classifier")
    force: str = param("newline/./!/?/comma", "texts that always stay, joined by /; newline, comma, slash; none")
    digits: bool = param(False, "keep every token with a digit")
    drop_consecutive: bool = param(True, "drop a force token that repeats the one before")
    scope: Literal["context", "prompt"] = param("context", "compress the context, or the question too")
    count: Literal["classifier", "gpt-3.5"] = param("classifier", "whose tokens weigh words for the threshold")
    wrapper: Literal["published", "own"] = param("published", "end marks around a chunk: as the published code, or own")

    @property
    def share(self) -> float:
        """The rate in use."""
        return 1 / int(self.preset[0]) if self.rate is None else self.rate

    @property
    def idle(self) -> bool:
        return self.share >= 1

    @property
    def whole_prompt(self) -> bool:
        return self.scope == "prompt"

    @property
    def helper(self) -> Helper:
        return Helper("classifier", NAMES.get(self.model, self.model))

    @property
    def depends_on(self) -> dict[str, str]:
        named = {**self.parameters, "rate": f"{self.share:.12g}"}
        return {key: text for key, text in named.items() if key not in ("preset", "model", "scope")}

    @property
    def force_tokens(self) -> list[str]:
        """The texts that always stay, in order."""
        names = {"newline": "\n", "comma": ",", "slash": "/"}
        return [] if self.force == "none" else [names.get(name, name) for name in self.force.split("/") if name]

    def check_helper(self, helper: TokenClassifier) -> None:
        kind = helper.model.config.model_type
        if kind not in ("xlm-roberta", "bert"):
            raise ModelError(
                f"{helper.name} is a {kind} model; LLMLingua-2 is defined for XLM-RoBERTa and multilingual BERT.",
                "Use llmlingua2@model=large, small, or a checkpoint of these families.",
            )
        if len(self.force_tokens) > 100:
            raise ModelError("llmlingua2@force names more than 100 texts.", "Name fewer.")
        if self.count == "gpt-3.5":
            _gpt()

    def rewrite(self, prompt: PromptText, helper: TokenClassifier) -> str:
        reader = Reader(helper, self.force_tokens, digits=self.digits, own_marks=self.wrapper == "own")
        weigh = _gpt_tokens if self.count == "gpt-3.5" else _own_tokens
        kept = []
        for words in reader.read(reader.chunks(reader.mapped(prompt.passage))):
            chosen = choose(words, weigh, self.share, self.force_tokens, drop_consecutive=self.drop_consecutive)
            kept.append(helper.tokenizer.convert_tokens_to_string(chosen) if chosen else "")
        return "".join(kept)


@cache
def _gpt() -> Any:
    """The tokenizer of gpt-3.5-turbo. Raises ModelError where tiktoken or its vocabulary is not here."""
    try:
        import tiktoken

        return tiktoken.encoding_for_model("gpt-3.5-turbo")
    except ImportError:
        raise ModelError(
            "llmlingua2@count=gpt-3.5 needs the package tiktoken, which is not installed.",
            "Run: pip install tiktoken (or leave count out)",
        ) from None
    except Exception as error:  # it fetches its vocabulary with another library, which fails in many ways
        raise ModelError(
            f"The vocabulary of gpt-3.5-turbo could not be fetched: {type(error).__name__}.",
            "Set TIKTOKEN_CACHE_DIR to a folder that has it, or leave count out.",
        ) from None


def _gpt_tokens(word: Word) -> int:
    return len(_gpt().encode(word.text))


def _own_tokens(word: Word) -> int:
    return len(word.values)


class Reader:
    """Reads text with a token classifier as LLMLingua-2 does.

    Args:
        force: texts that always stay. digits: so do tokens with a digit. own_marks: end marks of the tokenizer itself.
    """

    batch = 50  # chunks a forward pass

    def __init__(self, helper: TokenClassifier, force: Sequence[str], *, digits: bool, own_marks: bool) -> None:
        self._helper, self._force, self._digits = helper, set(force), digits
        self.tokenizer = helper.tokenizer
        self._xlmr = helper.model.config.model_type == "xlm-roberta"
        self._special = {str(token) for name in _NAMED if (token := getattr(self.tokenizer, name, None))}
        self._stands_for = {
            text: f"[NEW{i}]" for i, text in enumerate(force) if len(self.tokenizer.tokenize(text)) != 1
        }
        self._ends = {".", "\n"} | {self._stands_for[text] for text in (".", "\n") if text in self._stands_for}
        self._marks = self._around(own_marks)
        self._room = min(_WINDOW, helper.window) - 2

    def _around(self, own: bool) -> tuple[int, int]:
        """Ids of what stands before and behind a chunk."""
        if own:
            first = self.tokenizer.cls_token_id if self.tokenizer.cls_token_id is not None else 0
            return int(first), int(self.tokenizer.sep_token_id)
        before, behind = self.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])
        unknown = self.tokenizer.unk_token_id
        return int(unknown if before is None else before), int(unknown if behind is None else behind)

    def mapped(self, text: str) -> str:
        """A text with each force token that the tokenizer has no token for replaced by an added one."""
        for original, added in self._stands_for.items():
            text = text.replace(original, added)
        return text

    def chunks(self, text: str) -> list[str]:
        """Pieces of at most 511 tokens, ended behind the last full stop or line break among the first 511."""
        tokens = self.tokenizer.tokenize(text)
        found, start = [], 0
        while start < len(tokens):
            end = len(tokens) - 1
            if start + self._room <= end:
                end = start + self._room
                ends = (at for at in range(end, start, -1) if tokens[at] in self._ends)
                end = next(ends, end)
            found.append(self.tokenizer.convert_tokens_to_string(tokens[start : end + 1]))
            start = end + 1
        return found

    def read(self, chunks: Sequence[str]) -> Iterable[list[Word]]:
        """The words of each chunk with what they are worth."""
        for at in range(0, len(chunks), self.batch):
            tokens = [self.tokenizer.tokenize(chunk)[: self._room + 1] for chunk in chunks[at : at + self.batch]]
            rows = [self.tokenizer.convert_tokens_to_ids(row) for row in tokens]
            for ids, values in zip(rows, self._values(rows), strict=True):
                yield self._words(self.tokenizer.convert_ids_to_tokens(ids), values)  # unknown ones become <unk>

    def _values(self, rows: Sequence[Sequence[int]]) -> list[list[Any]]:
        """Probability of being kept for each token id of each row, fp32."""
        device, widest = self._helper.device, min(max(map(len, rows)), self._room) + 2
        # The published code pads with a token that XLM-RoBERTa does not have; masked or not, its id moves no position.
        ids = torch.full((len(rows), widest), self._marks[0], dtype=torch.int64)
        mask = torch.zeros(len(rows), widest, dtype=torch.int64)
        for i, tokens in enumerate(rows):
            row = [self._marks[0], *tokens, self._marks[1]][: self._room + 2]  # 511 tokens lose their end mark
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        logits = self._helper.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        keep = torch.softmax(logits, dim=-1)[:, :, 1].float().cpu().numpy()
        return [list(keep[i, 1 : 1 + len(tokens)]) for i, tokens in enumerate(rows)]

    def _words(self, tokens: Sequence[str], values: Sequence[Any]) -> list[Word]:
        added = set(self._stands_for.values())
        words: list[Word] = []
        for token, value in zip(tokens, values, strict=True):
            if token in self._special:
                continue
            plain = token.lstrip("▁") if self._xlmr else token.lstrip("#")
            begins = self._begins(token, plain, added) or not words
            if begins and (plain in self._force or plain in added):
                value = 1.0
            for original, stand_in in self._stands_for.items():
                token = token.replace(stand_in, original) if begins else token
            if self._digits and re.search(r"\d", token):
                value = 1.0
            if begins:
                words.append(Word(token, [value]))
            else:
                words[-1] = Word(words[-1].text + plain, [*words[-1].values, value])
        return words

    def _begins(self, token: str, plain: str, added: set[str]) -> bool:
        """Whether a token begins a word."""
        if self._xlmr:
            return (
                token in string.punctuation or token in self._force or token in added or token.startswith("▁")
            )  # punctuation: the published code looks for the token in the string of all of it
        return plain in self._force or plain in added or not token.startswith("##")


def choose(
    words: Sequence[Word], weigh: Callable[[Word], int], rate: float, force: Sequence[str], *, drop_consecutive: bool
) -> list[str]:
    """The words of a chunk that stay.

    Args:
        weigh: how often a word counts in the threshold. rate: share that stays.
    """
    worth = [word.mean for word in words]
    reduce = max(0, 1 - rate)
    if not words:
        return []
    if drop_consecutive:
        _silence_repeats(words, worth, float(np.percentile(worth, int(100 * reduce))), set(force))
    repeated = [value for word, value in zip(words, worth, strict=True) for _ in range(weigh(word))]
    threshold = np.percentile(repeated or worth, int(100 * reduce + 1))
    kept: list[str] = []
    for word, value in zip(words, worth, strict=True):
        if not (value > threshold or (threshold == 1.0 and value == threshold)):
            continue
        if drop_consecutive and word.text in force and kept and kept[-1] == word.text:
            continue
        kept.append(word.text)
    return kept


def _silence_repeats(words: Sequence[Word], worth: list[Any], threshold: float, force: set[str]) -> None:
    """A force token that repeats the last one with nothing above the threshold between them is worth nothing."""
    between, last = False, None
    for i, word in enumerate(words):
        if word.text not in force:
            between |= bool(worth[i] > threshold)
            continue
        if between:
            between = False
        elif word.text == last:
            worth[i] = 0.0
        last = word.text

"""Small random token classifiers in hub layout, one like XLM-RoBERTa and one like multilingual BERT, and texts of our
own to compress: everything a function of fixed seeds, so that outputs of other programs on them can be kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

ADDED = [f"[NEW{i}]" for i in range(100)]
SYLLABLES = re.findall(
    r"\w+", "ka lo mi ren ta sol vi dor pe nak shu bel or in at ea ru gan ti mos qua le fir den ho yu cet al"
)
HAN = "山水火木人大小天地日月上下中来去说年东西南北高长门马车书学生"
MARKS = ".,!?;:()-\"'"
KINDS = ("xlm-roberta-large", "bert-base-multilingual-cased")
BARE = "xlm-roberta-large-bare"  # without LLMLingua-2's added tokens, as published: their embeddings must be made


def save_classifier(folder: Path, kind: str, *, seed: int = 5, labels: int = 2) -> Path:
    """Write a classifier; returns the folder. Its name holds ``kind``, by which the public package tells families."""
    folder = folder / f"tiny-{kind}"
    tokenizer = _bert() if kind == KINDS[1] else _xlmr([] if kind == BARE else ADDED)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": labels,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind != KINDS[1]:
        config = XLMRobertaConfig(**shape, max_position_embeddings=514, type_vocab_size=1)
        model: Any = XLMRobertaForTokenClassification(config)
    else:
        model = BertForTokenClassification(BertConfig(**shape, max_position_embeddings=512))
    draw = np.random.RandomState(seed)  # its stream never changes, unlike torch's
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.tensor(draw.standard_normal(tuple(parameter.shape)) * 0.3, dtype=torch.float32)
            parameter.copy_(1 + noise if "LayerNorm.weight" in name else noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _xlmr(added: list[str]) -> PreTrainedTokenizerFast:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = ["▁", *(f"▁{s}" for s in SYLLABLES), *SYLLABLES, *"0123456789abcdefghijklmnopqrstuvwxyz", *MARKS, *HAN]
    pieces += [f"▁{mark}" for mark in ".,"]
    vocab = [(token, 0.0) for token in specials] + [(p, -1.0 - 0.01 * i) for i, p in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*specials, "<mask>", *added]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def _bert() -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    pieces = [*SYLLABLES, *(f"##{s}" for s in SYLLABLES), *letters, *(f"##{c}" for c in letters), *MARKS, *HAN]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*specials, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*specials, *ADDED]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def texts() -> dict[str, str]:
    """Texts by name: prose with paragraphs, one without any punctuation, Chinese, code-like, short, odd."""
    draw = np.random.RandomState(11)

    def word() -> str:
        if draw.rand() < 0.1:
            return str(draw.randint(1, 3000))
        return "".join(SYLLABLES[i] for i in draw.randint(0, len(SYLLABLES), draw.randint(1, 4)))

    def sentence(end: str) -> str:
        words = [word() for _ in range(draw.randint(3, 15))]
        if draw.rand() < 0.4:
            words[len(words) // 2] += ","
        return " ".join(words) + end

    def prose(count: int) -> str:
        ends = [".", ".", ".", "!", "?", ".\n", ".\n\n"]
        return " ".join(sentence(ends[draw.randint(0, len(ends))]) for _ in range(count))

    han = "".join(
        HAN[draw.randint(0, len(HAN))] + ("。" if draw.rand() < 0.03 else "\n" if draw.rand() < 0.02 else "")
        for _ in range(1500)
    )
    code = "\n".join(f"def {word()}({word()}, {word()}): return {word()} - {word()}(({word()}))" for _ in range(60))
    return {
        "prose": prose(120),
        "no-punctuation": " ".join(word() for _ in range(700)),
        "chinese": han,
        "code": code,
        "short": prose(1),
        "odd": "ka\n\n\nlo..., mi ☃ ren!!  ??\tta\x0b sol §§ 12,34 .. , ,\n.\n. vi" * 3,
    }

"""Methods under transformers' own `generate`: token by token what our engine answers, and the model as before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import lcbench
from lcbench.engine.answer import Answerer
from lcbench.engine.answer_text import text_of
from lcbench.engine.groups import make_groups
from lcbench.engine.inspection.examine import examine
from lcbench.engine.inspection.inputs import Read
from lcbench.engine.memory import Limits
from lcbench.engine.options import Options
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.engine.single import answer_one
from lcbench.engine.stacked import Rules
from lcbench.errors import LcbenchError, ModelError, UsageError
from lcbench.methods.registry import resolve
from lcbench.tasks.base import Row
from lcbench.tasks.passkey import Passkey
from tiny import loaded, tiny_model

NEW = 12
METHODS = [
    "full",
    "snapkv@budget=0.25,window=8",
    "kivi@bits=2,group_size=32,residual_length=32",
    "streamingllm@budget=24",
    "h2o@budget=32",
    "tova@budget=32",
    "snapkv@budget=0.5,window=8+kivi@bits=4,group_size=32,residual_length=32",
    "infllm",
    "positional-hidden@channels=3,factor=0,first=0,last=1",
    "positional-hidden@channels=3,factor=0,first=0,last=1+kivi@bits=2,group_size=32,residual_length=32",
    "selfextend@group=4,neighbours=32",
    "yarn@factor=2+snapkv@budget=0.25,window=8",
    "em-llm",
    "gemfilter@budget=64",
]
# What `generate` does not tell a method: the length of its text.
ALONE = [*METHODS, "dynamic-ntk@factor=2", "selfextend@group=4,neighbours=32+kivi@bits=4,group_size=32"]


def ids_of(seed: int, length: int) -> list[int]:
    return torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(model: Any, rows: list[list[int]], **options: Any) -> list[list[int]]:
    """What `generate` appends to each row; shorter rows padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, **options}
    return model.generate(ids, attention_mask=mask, **options)[:, longest:].tolist()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(window=2048, seed=1)


@pytest.fixture(scope="module")
def engine() -> Any:
    return loaded(tiny_model(window=2048, seed=1))


def ours(engine: Any, method: str, row: list[int]) -> list[int]:
    return answer_one(engine, resolve(method), row, Rules(NEW), seed=42).generated.ids


@pytest.mark.parametrize("name", ALONE)
def test_one_prompt_alone_is_answered_as_in_a_run(engine: Any, name: str) -> None:
    """`answer_one`, behind `lcbench.generate` and `lcbench serve`, against the groups of a run."""
    method, row = resolve(name), ids_of(3, 150)
    shared, prompt = method.reading is not None, PreparedPrompt(Row("r", {}, ("",)), tuple(row), len(row))
    task = replace(Passkey(), max_new_tokens=NEW)
    one = PromptSet(task, (method,), shared, (prompt,), NEW, "", ("", ""), reading=method.reading or "")
    (group,) = make_groups([one], engine.shape(), Limits(4, 2**14, 2**30))
    (result,) = Answerer(engine, [one], Options()).run(group)
    assert result.record.pred == text_of(engine, ours(engine, name, row))


@pytest.mark.parametrize("name", ALONE)
def test_inspection_takes_the_steps_of_an_answer(engine: Any, name: str) -> None:
    row = ids_of(3, 150)
    answer = ours(engine, name, row)
    assert list(examine(engine, resolve(name), Read(row), steps=len(answer)).fed) == answer


@pytest.mark.parametrize("method", METHODS)
def test_generate_answers_as_the_engine_does(model: Any, engine: Any, method: str) -> None:
    row = ids_of(3, 150)
    with lcbench.applied(model, method) as same:
        assert same is model
        (answer,) = generated(model, [row])
    expected = ours(engine, method, row)
    assert answer[: len(expected)] == expected


def test_most_methods_change_the_answer(model: Any) -> None:
    row = ids_of(3, 150)
    answers = []
    for method in METHODS[:4]:
        with lcbench.applied(model, method):
            answers.append(tuple(generated(model, [row])[0]))
    assert len(set(answers)) > 2


@pytest.mark.parametrize("method", ["snapkv@budget=0.25,window=8", "kivi@bits=2,group_size=32,residual_length=32"])
def test_rows_padded_on_the_left_are_read_without_their_padding(model: Any, engine: Any, method: str) -> None:
    rows = [ids_of(1, 150), ids_of(2, 97), ids_of(3, 41)]
    with lcbench.applied(model, method):
        answers = generated(model, rows)
    for row, answer in zip(rows, answers, strict=True):
        expected = ours(engine, method, row)
        assert answer[: len(expected)] == expected


def test_the_model_is_as_before_afterwards(model: Any) -> None:
    row = ids_of(5, 120)
    before, names = generated(model, [row]), set(vars(model))
    kind = model.config._attn_implementation
    with lcbench.applied(model, "streamingllm@budget=16"):
        changed = generated(model, [row])
    assert changed != before
    with pytest.raises(ZeroDivisionError), lcbench.applied(model, "kivi@bits=2"):
        raise ZeroDivisionError
    assert (model.config._attn_implementation, set(vars(model))) == (kind, names)
    assert generated(model, [row]) == before


def test_full_is_what_the_library_answers(model: Any) -> None:
    rows = [ids_of(7, 100), ids_of(8, 60)]
    plain = generated(model, rows)
    with lcbench.applied(model, "full"):
        assert generated(model, rows) == plain


def test_sampling_stays_the_callers(model: Any) -> None:
    row = ids_of(9, 100)
    torch.manual_seed(0)
    plain = generated(model, [row], do_sample=True)
    torch.manual_seed(0)
    with lcbench.applied(model, "full"):
        assert generated(model, [row], do_sample=True) == plain


def test_a_loaded_model_works_too(engine: Any) -> None:
    row = ids_of(3, 150)
    with lcbench.applied(engine, "snapkv@budget=0.25,window=8") as plain:
        (answer,) = generated(plain, [row])
    expected = ours(engine, "snapkv@budget=0.25,window=8", row)
    assert answer[: len(expected)] == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, "Beam search"),
        ({"use_cache": False}, "cache"),
        ({"prefill_chunk_size": 32}, "new prompt"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "not kept"),
        ({"prompt_lookup_num_tokens": 2}, "new prompt|takes tokens back"),
        ({"cache_implementation": "static"}, "StaticCache was asked for beside it"),
        ({"num_beams": 2, "do_sample": True}, "Beam search"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(model: Any, options: dict[str, Any], words: str) -> None:
    with lcbench.applied(model, "snapkv@budget=0.25,window=8"), pytest.raises(LcbenchError, match=words):
        generated(model, [ids_of(1, 100)], **options)


def test_an_assistant_is_refused_in_a_sentence(model: Any) -> None:
    with lcbench.applied(model, "kivi@bits=2"), pytest.raises(UsageError, match="assistant"):
        generated(model, [ids_of(1, 100)], assistant_model=tiny_model(window=2048, seed=2, layers=1))


def test_several_samples_of_one_prompt(model: Any) -> None:
    row = ids_of(9, 100)
    torch.manual_seed(0)
    plain = generated(model, [row], do_sample=True, num_return_sequences=3)
    torch.manual_seed(0)
    with lcbench.applied(model, "full"):
        assert generated(model, [row], do_sample=True, num_return_sequences=3) == plain
    with lcbench.applied(model, "streamingllm@budget=24"):
        out = generated(model, [row], do_sample=True, num_return_sequences=3, output_scores=True,
                        return_dict_in_generate=False)  # fmt: skip
    assert len(out) == 3


def test_one_method_at_a_time_on_a_model(model: Any, engine: Any) -> None:
    with lcbench.applied(model, "full"), pytest.raises(UsageError, match="already"), lcbench.applied(model, "kivi"):
        pass
    with pytest.raises(UsageError, match="type str"), lcbench.applied("demo", "full"):
        pass
    with lcbench.applied(model, "full"), pytest.raises(UsageError, match="no tokens"):
        model(torch.zeros((1, 0), dtype=torch.long))
    assert "forward" not in vars(model)


def test_right_padding_labels_and_embeddings_are_refused(model: Any) -> None:
    ids = torch.tensor([ids_of(1, 20), ids_of(2, 20)])
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with lcbench.applied(model, "full"):
        with pytest.raises(UsageError, match="right"):
            model.generate(ids, attention_mask=mask, max_new_tokens=2, pad_token_id=0)
        with pytest.raises(UsageError, match="cache alone"):
            model(ids, labels=ids)
        with pytest.raises(UsageError, match="token ids"):
            model(inputs_embeds=torch.zeros(1, 3, 64))


def test_methods_that_need_more_than_generate_gives_are_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="rewrites text"), lcbench.applied(model, "llmlingua2"):
        pass
    with pytest.raises(LcbenchError, match="snapvk"), lcbench.applied(model, "snapvk"):
        pass
    assert "forward" not in vars(model)


@pytest.mark.parametrize("option", ["output_attentions", "output_hidden_states", "use_cache"])
def test_what_is_not_kept_is_refused_with_what_to_leave_out(model: Any, option: str) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with lcbench.applied(model, "full"), pytest.raises(UsageError) as refused:
        model.generate(ids, max_new_tokens=2, **{option: option != "use_cache"})
    assert option in refused.value.next_step


def test_no_model_is_not_the_demo_model() -> None:
    with pytest.raises(LcbenchError, match="not the name of a model"):
        lcbench.load_model(None)  # type: ignore[arg-type]

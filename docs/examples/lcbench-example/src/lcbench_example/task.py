"""The task ``sums``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lcbench import register_task
from lcbench.config.options import param
from lcbench.tasks.base import Loaded, Prompt, Row, Task


@register_task("sums")
@dataclass(frozen=True)
class Sums(Task):
    """Two numbers stand in a list of many; what is their sum?"""

    numbers: int = param(40, "numbers in the list", minimum=2)
    questions: int = param(20, "rows", minimum=1)

    benchmark = "example"
    category = "arithmetic"
    metric = "qa_f1"
    chat = False
    truncate = "error"

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        rows = []
        for index in range(self.questions):
            draw = random.Random(index)
            numbers = [draw.randrange(100) for _ in range(self.numbers)]
            first, second = draw.sample(range(self.numbers), 2)
            answer = str(numbers[first] + numbers[second])
            rows.append(Row(str(index), {"numbers": numbers, "asked": (first, second)}, (answer,)))
        return Loaded(rows[:limit])

    def answer_tokens(self, home: Path) -> int:
        return 8

    def prompt(self, row: Row, home: Path) -> Prompt:
        first, second = row.fields["asked"]
        lines = "\n".join(f"Number {i} is {n}." for i, n in enumerate(row.fields["numbers"]))
        return Prompt(f"{lines}\nNumber {first} plus number {second} is", len(lines), (0, len(lines)))

"""What methods that shorten the text of a prompt are given and give back.

Such a method is a `PromptTransform` (`methods.base`). It sees one part of a prompt, the context, and may read the
question beside it; the engine puts the result back into the prompt, keeps it below LCBENCH_HOME and counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HelperKind = Literal["causal", "classifier"]


@dataclass(frozen=True)
class PromptText:
    """A prompt as text, before it is cut, wrapped in a chat format or tokenized.

    Attributes:
        text: all of it.
        context: where the part stands that may be rewritten, from its first character to behind its last.
        question: what is asked of it; "" where the task asks the same of every row.
    """

    text: str
    context: tuple[int, int]
    question: str = ""

    @property
    def passage(self) -> str:
        """The part that may be rewritten."""
        return self.text[slice(*self.context)]

    @property
    def frame(self) -> str:
        """Everything else: the instruction, and the question where there is one."""
        return self.text[: self.context[0]] + self.text[self.context[1] :]

    @property
    def asked(self) -> str:
        """The question, or the instruction where no row has one of its own."""
        return self.question.strip() or self.frame.strip()

    def replaced(self, passage: str) -> str:
        """The prompt with another passage in its place."""
        return self.text[: self.context[0]] + passage + self.text[self.context[1] :]

    def whole(self) -> PromptText:
        """The same prompt, all of which may be rewritten."""
        return PromptText(self.text, (0, len(self.text)), self.question)


@dataclass(frozen=True)
class Helper:
    """A model that a method reads texts with before the model under test reads them.

    Attributes:
        kind: "causal" for a `LoadedModel`, "classifier" for a `models.classifier.TokenClassifier`.
        name: as in ``--model``; "" is the model under test itself.
        parameter: of the method, that names it: for error messages.
    """

    kind: HelperKind
    name: str
    parameter: str = "model"

"""Asking a judge many questions: each once, several at a time, remembered ones not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from lcbench.endpoint.client import NoReply
from lcbench.scoring.judge.cache import ReplyCache
from lcbench.scoring.judge.rubric import Grades, Question, read_reply, system_text

_LETTERS_A_TOKEN = 4


class Judge(Protocol):
    """Whatever can be asked: a server, or a model of this machine."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that can change a reply."""

    @property
    def label(self) -> str:
        """For people."""

    @property
    def concurrent(self) -> bool:
        """Whether `ask` may be called from several threads."""

    @property
    def tries(self) -> int:
        """Replies to ask for when the first cannot be read; 1 where the second would be the same."""

    def ask(self, system: str, user: str) -> str:
        """The reply. Raises NoReply for this question alone, LcbenchError when going on makes no sense."""

    def stop(self) -> None:
        """Begin nothing new."""


@dataclass(frozen=True)
class Budget:
    """What grading may cost, before the first call.

    Attributes:
        judge: its label. calls: at most (verdicts can make later questions needless; unreadable replies are asked for
        again). cached: questions answered before. prompt_tokens, reply_tokens: rough, of ``calls``.
    """

    judge: str
    calls: int
    cached: int
    prompt_tokens: int
    reply_tokens: int


@dataclass
class Asker:
    """Grades of questions, from the cache or from the judge.

    Attributes:
        judge: who is asked. cache: replies known. confirm: told the budget before the first call; raises to stop.
        workers: calls at a time. progress: told after each reply how many of a round are done, and how many there are.
        grades: by question; a text says why there are none. asked, cached: questions answered by the judge, and by the
        cache.
    """

    judge: Judge
    cache: ReplyCache
    confirm: Callable[[Budget], None] = lambda budget: None
    workers: int = 8
    progress: Callable[[int, int], None] = lambda done, total: None
    grades: dict[Question, Grades | str] = field(default_factory=dict)
    asked: int = 0
    cached: int = 0

    def recall(self, questions: Iterable[Question]) -> None:
        """Fill `grades` from the cache, without a call."""
        for question in dict.fromkeys(questions):
            known = self._remembered(question) if question not in self.grades else None
            if known is not None:
                self.grades[question] = known
                self.cached += 1

    def preview(self, questions: Iterable[Question]) -> None:
        """Tell `confirm` what asking these may cost; nothing when all their grades are known."""
        missing = [q for q in dict.fromkeys(questions) if q not in self.grades]
        if missing:
            letters = sum(len(q.prompt) + len(system_text()) for q in missing)
            most = int(self.judge.identity.get("max_tokens", 0))
            calls, tokens = len(missing), letters // _LETTERS_A_TOKEN
            self.confirm(Budget(self.judge.label, calls, self.cached, tokens, most * calls))

    def ask(self, questions: Iterable[Question]) -> None:
        """Fill `grades` for these questions. Raises what the judge raises when going on makes no sense."""
        missing = [q for q in dict.fromkeys(questions) if q not in self.grades]
        for done, (question, grades) in enumerate(self._replies(missing), start=1):
            self.grades[question] = grades
            self.asked += 1
            self.progress(done, len(missing))

    def _replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Grades | str]]:
        if not self.judge.concurrent or self.workers == 1:
            for question in questions:
                yield question, self._fresh(question)
            return
        waiting = iter(questions)
        running: dict[Future[Grades | str], Question] = {}
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="judge")
        try:
            while True:
                # Few are handed out at a time: an error or Ctrl-C then leaves few calls to wait for.
                for question in waiting:
                    running[pool.submit(self._fresh, question)] = question
                    if len(running) >= self.workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException:
            self.judge.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fresh(self, question: Question) -> Grades | str:
        """Grades from the judge, or why there are none. Replies that can be read are remembered."""
        why = ""
        for _ in range(self.judge.tries):
            try:
                reply = self.judge.ask(system_text(), question.prompt)
            except NoReply as error:
                return error.reason
            grades = read_reply(question.kind, reply)
            if grades is not None:
                self.cache.put((system_text(), question.prompt), reply)
                return grades
            why = "its reply holds no grades in the form asked for"
        return why

    def _remembered(self, question: Question) -> Grades | None:
        reply = self.cache.get((system_text(), question.prompt))
        return None if reply is None else read_reply(question.kind, reply)

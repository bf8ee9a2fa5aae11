"""lcbench: what does a long-context method cost a model's ability, and what does it save?

`lcbench.api` has what the names below do; each is loaded when it is first used, so that ``import lcbench`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcbench.api import Finished, Generation, applied, compare, generate, load_model, run, score
    from lcbench.methods.registry import method as register_method
    from lcbench.tasks.registry import task as register_task

__all__ = [
    "Finished",
    "Generation",
    "__version__",
    "applied",
    "compare",
    "generate",
    "load_model",
    "register_method",
    "register_task",
    "run",
    "score",
]

__version__ = "0.1.0"

_ELSEWHERE = {
    "register_method": ("lcbench.methods.registry", "method"),
    "register_task": ("lcbench.tasks.registry", "task"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lcbench' has no attribute '{name}'")
    from importlib import import_module

    module, attribute = _ELSEWHERE.get(name, ("lcbench.api", name))
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The categories that methods are listed by: those of the long-context benchmark paper (arXiv:2407.01527), and the ones
that papers after it added."""

from __future__ import annotations

from collections.abc import Mapping

from lcbench.methods.base import Family, Method

# In the order of the lists; a family is also the folder that its methods lie in.
CATEGORIES: Mapping[Family, str] = {
    "baseline": "Baseline",
    "quantize": "KV-cache quantization",
    "evict": "Token eviction",
    "merge": "Cache merging",
    "retrieve": "Retrieval: all is kept, part of it is read",
    "prompt": "Prompt compression",
    "extend": "Context extension",
    "memory": "Memory and test-time methods",
    "architecture": "Linear-time and hybrid architectures",
}
_ORDER = list(CATEGORIES)


def by_category(method: type[Method]) -> tuple[int, str]:
    """Sort key of a method class: its category's place, then its name."""
    return _ORDER.index(method.traits.family), method.name

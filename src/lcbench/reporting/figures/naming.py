"""Short names that stay different: of models, of methods, of files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from lcbench.reporting.words import clean, shorten

_BREAKS = re.compile(r"[@,/ (\[]")  # where a part of a name begins


def told_apart(names: Iterable[str], longest: int) -> dict[str, str]:
    """Each name to one of at most ``longest`` characters that no other has, where that takes no counting.

    A name is cut in its middle; of those that would come out the same the part in which they differ is kept.
    """
    found = _short(list(dict.fromkeys(names)), longest)
    taken: dict[str, int] = {}
    for name, short in found.items():
        taken[short] = taken.get(short, 0) + 1
        if taken[short] > 1:
            found[name] = f"{short} #{taken[short]}"
    return found


def methods_told_apart(labels: Iterable[str], longest: int = 26) -> dict[str, str]:
    """Labels as they are, but those that could not be told apart at ``longest`` characters as `told_apart` has them."""
    labels = list(dict.fromkeys(labels))
    # `shorten` may leave less room than that: names must differ there, too.
    cut = [{size: shorten(label, size) for size in (longest, longest - 8)} for label in labels]
    alike = [
        label
        for i, label in enumerate(labels)
        if any(cut[i][s] == other[s] for j, other in enumerate(cut) if j != i for s in cut[i])
    ]
    return {label: label for label in labels} | told_apart(alike, longest)


def file_names(names: Iterable[str], longest: int = 48) -> dict[str, str]:
    """Each name to a part of a file's name: small letters and digits of any script, told apart."""
    names = list(dict.fromkeys(names))
    slugs = [re.sub(r"[\W_]+", "-", name.lower()).strip("-") or "unnamed" for name in names]
    short = told_apart(slugs, longest)
    found: dict[str, str] = {}
    for name, slug in zip(names, slugs, strict=True):
        base = one = re.sub(r"[\W_]+", "-", short[slug]).strip("-")
        number = 1
        while one in found.values():
            number += 1
            one = f"{base}-{number}"
        found[name] = one
    return found


def _short(names: Sequence[str], longest: int) -> dict[str, str]:
    found = {name: shorten(name, longest) for name in names}
    for short in set(found.values()):
        alike = [name for name in names if found[name] == short]
        if len(alike) > 1:
            found.update(_by_difference([clean(name, 10_000) for name in alike], alike, longest))
    return found


def _by_difference(shown: Sequence[str], names: Sequence[str], longest: int) -> dict[str, str]:
    """The begin of each, an ellipsis, the part in which they differ, and what fits of the end."""
    before = _alike(shown)
    after = _alike([text[before:][::-1] for text in shown])
    starts = [found.end() for found in _BREAKS.finditer(shown[0][:before]) if before - found.end() <= longest // 3]
    begin = starts[-1] if starts else before
    result = {}
    for name, text in zip(names, shown, strict=True):
        # The rest of its part, too: "0.25" says more than "2" where the other is "0.5".
        stop = next((m.start() for m in _BREAKS.finditer(text, len(text) - after)), len(text))
        middle = shorten(text[begin:stop], longest - 10) if begin else text[: longest - 1]
        if "…" in middle:  # its begin differs, so that must stay
            middle = text[before : before + longest - 10] + "…"
            result[name] = f"{text[: min(8, before)]}…{middle}"
            continue
        tail = "…" if stop < len(text) else ""
        room = longest - len(middle) - len(tail) - 1
        head = text[: min(room, begin)]
        result[name] = f"{head}{'…' if len(head) < begin else ''}{middle}{tail}"
    return result


def _alike(texts: Sequence[str]) -> int:
    """How many characters all of them begin with."""
    return sum(1 for _ in itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*texts, strict=False)))

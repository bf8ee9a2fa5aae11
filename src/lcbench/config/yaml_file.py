"""Reading a YAML file of options, and writing the options of a run as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lcbench.config.spec import ALIASES, RunSpec
from lcbench.errors import UsageError


class _OnceLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML itself would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [ALIASES.get(str(key.value), str(key.value)) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(
                    f"The key '{key}' is given twice (line {node.start_mark.line + 1} and below).", "Give it once."
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError: unreadable, no YAML, no mapping, a key twice."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except OSError as error:
        raise UsageError(
            f"Cannot read {path}: {error.strerror}.",
            "Give --config an existing YAML file, or write an example: lcbench init",
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8: byte {error.start} cannot be read.", "Give --config a YAML file."
        ) from None
    except yaml.YAMLError as error:
        where, what = _problem(error)
        raise UsageError(
            f"{path}{where} is not valid YAML: {what}.", "Mend that line; `lcbench init` writes an example."
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise UsageError(f"{path} is not a mapping of keys to values.", "Write lines like `model: demo`.")
    return data


def _problem(error: yaml.YAMLError) -> tuple[str, str]:
    """Where and what: ", line 2" and the parser's words."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    what = ", ".join(str(word) for word in words if word).replace("\t", "tab").replace("\\t", "tab")
    return (f", line {mark.line + 1}" if mark is not None else ""), what or "it cannot be read"


def to_yaml(spec: RunSpec) -> str:
    """A spec in the flat keys of ``--config``: reading it gives the same spec. A spec holds no access tokens."""
    data = spec.to_dict()
    model = data.pop("model")
    flat = {"model": model.pop("name"), **model, **data}
    flat = {key: value for key, value in flat.items() if value is not None and value != {}}
    return yaml.safe_dump(flat, sort_keys=False, allow_unicode=True, width=110)

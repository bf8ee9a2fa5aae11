"""The harness cases of all registered methods, from the ``cases_*.py`` files beside this one.

Each of those has a dict ``CASES``, method name to its cases. `test_acceptance` runs them and misses no method.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from harness import Case

CASES: dict[str, list[Case]] = {}
for _file in sorted(Path(__file__).parent.glob("cases_*.py")):
    for _name, _cases in importlib.import_module(_file.stem).CASES.items():
        assert _name not in CASES, f"{_name} has cases in two files"
        CASES[_name] = _cases

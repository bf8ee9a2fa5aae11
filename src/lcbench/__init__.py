"""lcbench: what does a long-context method cost a model's ability, and what does it save?"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"

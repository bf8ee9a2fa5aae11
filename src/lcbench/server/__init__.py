"""``lcbench serve``: a small OpenAI-compatible server over one model with one method."""

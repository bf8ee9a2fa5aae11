"""The run directory: what a run writes, and how it survives being killed. See docs/run-directory.md."""

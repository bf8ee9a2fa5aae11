"""The run directory: append-only records, resume, locks. See docs/run-directory.md."""

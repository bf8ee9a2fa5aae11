"""Models behind an OpenAI-compatible address: the same tasks, records and run directory, no weights here."""

"""Methods that widen the context window."""

"""A method and a task for lcbench; each registers itself when lcbench imports its module."""

"""What is asked: one module a benchmark. `registry.resolve` turns names into tasks."""

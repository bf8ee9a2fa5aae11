"""The physical KV cache: per-layer stores, attention over them, packing, exact bytes, forks."""

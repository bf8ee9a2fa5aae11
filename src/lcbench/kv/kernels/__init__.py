"""GPU kernels (Triton) for packed caches; see `batch`. Importing this package needs no Triton, its modules do."""

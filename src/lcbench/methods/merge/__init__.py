"""Methods that merge tokens of the cache."""

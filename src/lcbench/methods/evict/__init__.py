"""Methods that drop tokens from the cache."""

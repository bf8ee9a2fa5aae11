"""Methods: one file each, registered by a decorator. `base` has the protocols, `registry` finds them."""

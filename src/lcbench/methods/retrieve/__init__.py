"""Methods that keep everything and look at a part of it."""

"""Methods that shorten the prompt itself."""

"""Asking a model behind an OpenAI-compatible address: patient, and careful with the key."""

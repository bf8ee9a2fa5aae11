"""Models: loading, chat formats, and the one file that touches private names of transformers (`adapter`)."""

"""RWKV-5 ("Eagle"), which transformers does not carry: model, tokenizer, and reading the published ``.pth`` files.

Architecture: "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv:2404.05892.
"""

"""MHA2MLA: a Llama model whose cache holds one latent vector a token and a few rotated key dimensions.

"Towards Economical Inference: Enabling DeepSeek's Multi-Head Latent Attention in Any Transformer-based LLMs",
arXiv:2502.14837.
"""

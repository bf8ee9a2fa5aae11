"""100-LongBench (arXiv:2505.19293): eight tasks built at any length from pools of documents, and asked.

`pools` and `documents` read what there is to build from, `fill` chooses passages up to a length, `comprehension` and
`synthetic` make one context with its questions each, `build` writes files of them and checks them again, `task` asks
them. Construction: `generate_dataset.py` and `utils/data_utils.py` of uservan/100-LongBench; where we differ,
docs/100-longbench.md says so.
"""

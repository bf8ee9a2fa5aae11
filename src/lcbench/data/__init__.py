"""Benchmark data: manifests, download, verification and the local store. Offline once a file is present.

The other rooms use `lcbench.data.store` (read what is installed); `lcbench download` uses `lcbench.data.install`.
"""

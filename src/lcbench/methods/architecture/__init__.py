"""Models that are methods: linear-time and hybrid architectures."""

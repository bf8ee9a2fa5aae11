"""The efficiency bench: each method alone, unshared, warmed up, repeated, on synchronized clocks."""

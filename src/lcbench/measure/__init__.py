"""Clocks and memory readings that wait for the device before they read."""

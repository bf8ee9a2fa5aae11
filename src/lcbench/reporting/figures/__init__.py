"""Figures of a report: plain data in, matplotlib figures out. One kind a file; `make.figures_of` draws what applies."""

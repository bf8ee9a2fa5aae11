"""LongScore: long-context ability apart from base ability (100-LongBench), for any task that exists at several lengths.

`formula` is the arithmetic, `ladder` finds the lengths, `curve` makes scores over length with intervals, `decompose`
splits a method's loss into base and long-context ability, and `result` is what scores.json and the reports read.
"""

"""Grading by a model: question answering and summaries of 100-LongBench, the QA filter, and all around the calls.

`rubric` has the prompts and reads the replies, `endpoint` talks to a server, `cache` remembers replies, `asking` asks
each question once, `grading` decides what has to be asked and makes scores of the verdicts.
"""

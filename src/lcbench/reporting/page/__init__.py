"""The report as one HTML file: no request leaves it, everything from models and data is text and nothing else.

Three guards against hostile text, each enough alone: Jinja escapes what stands in the page; what scripts read is JSON
in which no ``<`` is left, and they set text, never markup; and the page's own policy (Content-Security-Policy) lets no
script run but ours, and nothing be fetched at all.
"""

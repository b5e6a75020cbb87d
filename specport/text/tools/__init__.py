"""Tools: offer functions to a model in its own chat format, and read its calls out of the text as it streams.

`session.prepare` is the entrance.
"""

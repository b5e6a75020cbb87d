"""Grammars: hold a text to a JSON schema, a regular expression or a Lark grammar."""

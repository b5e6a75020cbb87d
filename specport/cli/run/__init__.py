"""`specport run`: answer a prompt, or many, or chat.

command.py  the command: options, prompts, the pipeline
pairs.py    loads a pair model, to which few options apply
chat.py     the conversation of --chat
render.py   prints an answer as it is written; explain.py: the account of --explain
"""

"""`specport tune`: the command in command.py, and the tables of its result in table.py."""

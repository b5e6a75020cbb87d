"""`specport transcribe`: the command in command.py, and what it shows and writes in output.py."""

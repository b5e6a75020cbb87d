"""`specport serve`: the command in command.py, and its replicas on a Ray cluster in ray.py."""

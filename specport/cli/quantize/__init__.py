"""`specport quantize`: build drafts and models that draft for themselves, and look at them.

command.py    the command: builds a draft, or hands over to one of its actions
trainings.py  what actions that train share
others        one action each: inspect, export, layers, compare, verifier, and the trainings
"""

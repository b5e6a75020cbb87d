"""What to draft next, by measured costs: the planner, its sources, and the worth of a token."""

"""What to draft next: policies, the planner, and the costs and probabilities they plan with."""

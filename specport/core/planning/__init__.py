"""What to draft next: policies, the planner, and the costs and chances they plan with."""

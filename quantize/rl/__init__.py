"""Reinforcement learning whose rollouts the engine writes with speculation."""

"""Long jobs in processes of their own, and resumable working directories."""

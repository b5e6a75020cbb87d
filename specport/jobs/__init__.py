"""Long jobs in processes of their own, and their resumable working directories."""

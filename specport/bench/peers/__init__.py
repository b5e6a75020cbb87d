"""Other runtimes as benchmark peers."""

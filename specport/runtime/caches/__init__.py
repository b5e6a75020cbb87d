"""Memory of key/value caches, and prefix caches in memory and on disk."""

"""Models: find, download, cache and check them."""

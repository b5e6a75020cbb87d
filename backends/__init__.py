"""One sub-package for each runtime. They do not import each other."""

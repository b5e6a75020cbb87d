"""The drafters that an expression names, found before anything is loaded."""

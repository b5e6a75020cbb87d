"""What was measured and chosen, kept in files."""

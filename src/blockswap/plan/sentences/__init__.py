"""The plan in sentences with numbers, for a person."""

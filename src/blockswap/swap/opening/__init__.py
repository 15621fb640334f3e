"""The steps of opening, in order; each says how it is undone."""

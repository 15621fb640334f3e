"""A clone with block swap: what it wishes, what is ours of its model, and until when."""

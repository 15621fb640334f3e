"""What running a block in pieces of tokens costs in time."""

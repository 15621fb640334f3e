"""MiniMax-H3's geometry streamed from its folder in 6 GB of memory."""

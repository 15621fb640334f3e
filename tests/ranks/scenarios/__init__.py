"""What the ranks of a test do; each function runs in a process of its own, one of a group's."""

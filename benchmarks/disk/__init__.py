"""The disk tier and its peers, each in a process of its own under a memory limit."""

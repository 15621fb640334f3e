"""Measures one method on one clip: a child in a cgroup of its own, and what it is asked."""

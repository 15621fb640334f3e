"""The parts of a pipeline: what a folder or single files hold, and how each part is read."""

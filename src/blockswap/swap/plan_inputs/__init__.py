"""From a live model and a device to what the planner is given."""

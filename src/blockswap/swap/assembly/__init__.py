"""Plan, model and stores put together as units that the engine can run."""

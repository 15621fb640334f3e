"""Models of the wrapper pack on this engine, for as long as a run of its sampler lasts."""

"""What each run of a model has, clone or wrapper model: a wish, a line of status, another try."""

"""From limits to one option: which blocks stay, where the others rest, through how many slots."""

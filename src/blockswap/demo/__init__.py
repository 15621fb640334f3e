"""The embedded demo: a small Wan transformer that draws moving shapes from three words."""

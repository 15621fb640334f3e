"""`python -m blockswap` is the `blockswap` command."""

from .cli import main

main()

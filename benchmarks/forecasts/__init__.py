"""The README's table "your card, your clip": each row is one `blockswap plan`, nothing is measured.

python -m benchmarks.forecasts            # prints the table; --write puts it into the README
"""

"""How close to the bound a forward runs, for our schedule and others', on an exact virtual clock.

python -m benchmarks.schedule            # some minutes; writes benchmarks/results/schedule.*
python -m benchmarks.schedule --quick    # a thin grid, printed only
"""

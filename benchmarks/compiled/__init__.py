"""What streaming blocks costs a model whose blocks are compiled.

    python -m benchmarks.compiled       # minutes; writes benchmarks/results/compiled.*

The same blocks, compiled by Inductor for the CPU, run whole in memory and streamed from their file,
in rounds taken in turn.
"""

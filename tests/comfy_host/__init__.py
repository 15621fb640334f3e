"""A real ComfyUI for the tests: how it is built, started, talked to, and what it is fed with.

Named so that neither this package nor the folder `tests/comfy` of its tests can be taken for
ComfyUI's own `comfy` package.
"""

"""The error tree: every refusal is one sentence that says what was asked, what is true, what to do.

    BlockSwapError
    ├── ArgsError            what the user wrote: an unknown key, a list and a count that disagree
    │   └── SelectionError   a block list: "Invalid range: '3-1'", "Invalid integer: 'a'"
    ├── CheckpointError      a file that cannot be trusted or used
    │   ├── HeaderError      no safetensors, truncated, lying about sizes or offsets
    │   ├── GeometryError    another model than the one asked for; a tensor missing or too many
    │   │   └── OtherModelError  a file that is no Wan transformer's
    │   └── ReadError        the disk failed under a read, or the file changed while it was open
    ├── ModelError           a live module that cannot be swapped as it stands
    ├── PlanError            no plan fits the budgets; says the least that would
    ├── DeviceError          a device that is not there, or cannot do what is needed
    ├── StateError           a call at the wrong time: used twice, closed, under grad, two at once
    ├── HostError            the application around us (ComfyUI) lacks what block swap works through
    └── OutputError          a result could not be written (no space, a folder that is not there)

A class also derives from the built-in error that a careful caller would already catch
(`ValueError`, `OSError`, `RuntimeError`).
"""


class BlockSwapError(Exception):
    """Root of everything that blockswap refuses on purpose."""


class ArgsError(BlockSwapError, ValueError):
    """The arguments contradict each other or name something unknown."""


class SelectionError(ArgsError):
    """A block list is malformed or names blocks that the model does not have."""


class CheckpointError(BlockSwapError, ValueError):
    """A checkpoint cannot be trusted or used."""


class HeaderError(CheckpointError):
    """A file is no safetensors file, is truncated, or its header lies."""


class GeometryError(CheckpointError):
    """The tensors of a checkpoint or module are not those of the model asked for."""


class OtherModelError(GeometryError):
    """A checkpoint is of another model than Wan's, which its file alone does not tell."""


class ReadError(CheckpointError, OSError):
    """A read of a block failed: says file, block, offset and cause."""


class ModelError(BlockSwapError, ValueError):
    """A live module cannot be swapped as it stands."""


class PlanError(BlockSwapError, ValueError):
    """No plan fits the budgets. `least_bytes`: the least that would do, where that is known."""

    def __init__(self, sentence: str, *, least_bytes: int | None = None) -> None:
        super().__init__(sentence)
        self.least_bytes = least_bytes


class DeviceError(BlockSwapError, RuntimeError):
    """A device is not there, or cannot do what is needed."""


class StateError(BlockSwapError, RuntimeError):
    """A call came at the wrong time."""


class HostError(BlockSwapError, RuntimeError):
    """The application that block swap runs in is not as expected."""


class OutputError(BlockSwapError, OSError):
    """A result could not be written."""

"""`Swap`, the caller's handle: plan, report, strengths of LoRAs, which model follows, closing."""

import os
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...ambient import undisturbed
from ...errors import ArgsError, StateError
from ...events import Measured, Visit
from ...lora.request import AnyLora, Lora, as_loras
from ...pieces import Pieces
from ...plan import SwapPlan
from ...plan.correction.change_sentences import recent
from ...ranks.group import Ranks, together_or_alone
from ...ranks.same_model import refuse_other_loras
from ...report import Summary, debug_line, draw_timeline, summarise, write_trace
from ...store.host_memory import peak_host_bytes
from ...stream.device import Device
from ...stream.engine.streamer import Streamer
from ...stream.marks import Recorder
from ...stream.peaks import PeakWatch
from .merged_loras import MergedLoras

# Raises where the LoRAs do not fit, else gives what opens the closed model for a handle.
Reopening = Callable[[tuple[Lora, ...]], Callable[["Swap"], None]]


class Swap:
    """A model that runs with its blocks streamed, until `close()` or the end of its `with`.

    `plan` is what was decided and, where nobody asked for exact blocks, corrected since by what
    was measured; `model` is what to run. Not made by callers: see `swap_blocks` and
    `open_transformer`.
    """

    def __init__(
        self, model: torch.nn.Module, plan: SwapPlan, device: Device, streamer: Streamer
    ) -> None:
        self.model = model
        self.plan = plan
        self._device = device
        self._streamer = streamer
        self._undo = ExitStack()
        self._entered = False
        self.closed = False
        self._told: tuple[Callable[[], tuple[str, ...]], ...] = ()
        self._changes: list[str] = []
        self.watch_peak()
        self._final: Measured | None = None
        self._loras: MergedLoras | None = None
        self.pieces: Pieces | None = None  # None: the model always runs whole
        self._reopening: Reopening | None = None
        self._ranks: Ranks | None = None
        # LoRAs that the host library has loaded into the model; see `LoraLoading`.
        self.loaded_beside: list[tuple[weakref.ref[torch.nn.Module], str]] = []
        self._follower: tuple[weakref.ref[Swap], int] | None = None  # after how many forwards
        self._leaders: weakref.WeakSet[Swap] = weakref.WeakSet()

    def keep(
        self,
        undo: ExitStack,
        told: Sequence[Callable[[], tuple[str, ...]]],
        loras: MergedLoras | None = None,
        reopening: Reopening | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Takes over how everything is undone, who has something to say in the report, how the
        model is opened anew with other LoRAs, and which ranks do all this together."""
        self._loras = loras
        self._ranks = ranks
        self._reopening = reopening
        self._undo = undo
        self._told = tuple(told)

    def begin(self, plan: SwapPlan, streamer: Streamer) -> None:
        """The same handle goes on with a model that was opened anew: its report begins again."""
        self._streamer = streamer
        self.replan(plan)
        for swap in (self, *self._leaders):  # the pool knew the engine of before
            swap.announce_follower()

    def replan(self, plan: SwapPlan) -> None:
        """The plan has changed while it ran; what was told of changes stays with it."""
        self.plan = replace(plan, sentences=(*plan.sentences, *recent(self._changes)))

    def spoil(self, sentence: str) -> None:
        """No forward is right any more, and each says this."""
        self._streamer.spoil(sentence)

    def tell(self, sentence: str) -> None:
        """Adds to the plan's sentences what has changed and why."""
        kept = len(self.plan.sentences) - len(recent(self._changes))
        self._changes.append(sentence)
        self.replan(replace(self.plan, sentences=self.plan.sentences[:kept]))

    def cut(self, chunk_tokens: int, sentence: str) -> None:
        """The plan says from now on in which pieces the model runs, and why."""
        self.plan = replace(self.plan, chunk_tokens=chunk_tokens)
        self.tell(sentence)

    def streams(self, name: str) -> bool:
        """Whether the unit visits the device at this moment, from wherever it rests."""
        return any(u.name == name and u.tier != "resident" for u in self._streamer.units)

    def reads_from_disk(self, name: str) -> bool:
        """Whether the unit's weights are in its file only, at this moment."""
        return any(u.name == name and u.tier == "disk" for u in self._streamer.units)

    @property
    def _recorder(self) -> Recorder:
        return self._streamer.recorder

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened the swap."""
        return self._streamer.forked

    def watch_peak(self) -> None:
        """The report's peak of the device is that from now on."""
        self._peak = PeakWatch(self._device)

    def __enter__(self) -> "Swap":
        if self.closed or self._entered:
            state = "closed" if self.closed else "in use"
            raise StateError(
                f"this swap of {type(self.model).__name__} was entered a second time, and it is "
                f"already {state}: call swap_blocks again for another round"
            )
        self._entered = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Swap":
        raise StateError(
            f"a copy of a swapped {type(self.model).__name__} was asked for, and its weights are "
            "partly elsewhere: close the swap, copy the model, then swap both"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        raise StateError("a swap cannot be pickled: close it first")

    @undisturbed()
    def close(self) -> None:
        """Gives the model back as it was and returns every byte. Closing twice does nothing.

        After `swap_blocks` the parameters are the same objects with the same values as before.
        After `open_transformer` and `open_text_encoder` the model has no weights any more (with a
        `mesh` it keeps them). Raises StateError, changing nothing, while another thread runs the
        model.
        """
        if self.closed:
            return
        if self._streamer.forked:
            # Everything is the parent's: the child's copy of it goes with the child.
            self.closed, self._final = True, self.measured()
            return
        self._streamer.refuse_running()
        try:
            final = self.measured()
        finally:  # whatever the device has to say, the model is given back
            self.closed = True
            self._undo.close()
            self._told = ()
            self._device.release_cached_host_memory()
        self._final = final

    @undisturbed()
    def measured(self) -> Measured:
        """What happened so far. Waits for the device, so call it between forwards."""
        if self._final is not None:
            return self._final
        if self._streamer.forked:
            return Measured((), self._recorder.counters.copy())
        self._device.synchronize()
        sentences = tuple(sentence for tell in self._told for sentence in tell())
        return Measured(
            visits=self._recorder.visits(),
            counters=self._recorder.counters.copy(),
            device_peak_bytes=self._peak.peak_bytes(),
            host_peak_bytes=peak_host_bytes(),
            sentences=sentences,
        )

    def report(self) -> Summary:
        """The plan beside what was measured; `print(swap.report())`. Waits for the device."""
        return summarise(self.plan, self.measured())

    def followed_by(self, other: "Swap", *, after: int) -> None:
        """Says that after `after` forwards in a row of this model those of `other` come.

        The first blocks of `other` are then brought while the last of these forwards ends; both
        must share their slots (`open_experts`, `swap_experts`). Without a word it is learnt from
        one clip to the next. A wrong guess costs a stall, nothing else. Raises ArgsError.
        """
        if self is other or not other.shares_slots_with(self._streamer):
            raise ArgsError(
                f"{type(other.model).__name__} was to follow {type(self.model).__name__}, and they "
                "are not two models that share their slots: open both in one call of open_experts "
                "or swap_experts"
            )
        _refuse_no_count(after)
        self._follower = weakref.ref(other), after
        other.led_by(self)
        self.announce_follower()

    def ends_after(self, forwards: int) -> None:
        """Says that after `forwards` forwards from now this model is not run any more.

        Nothing is brought for a further one then, which would cost a stall and nothing else. Raises
        ArgsError, StateError after `close()`.
        """
        _refuse_no_count(forwards)
        if self.closed:
            raise StateError(
                f"this swap of {type(self.model).__name__} is closed, and runs nothing: say it of "
                "an open one"
            )
        self._streamer.end_after(forwards)

    @undisturbed()
    def set_loras(self, loras: Sequence[AnyLora]) -> None:
        """Merges these LoRAs, `[]` for none, from the next forward on; call it between forwards.

        The files of now, in their order, at other strengths: streamed blocks are merged so when
        they arrive, and what stays on the device is merged anew now, which reads it once more.
        Any other files: the model is closed and opened anew behind this handle, by a plan of its
        own (models that share slots keep their places and slots), which takes as long as opening
        it did; the report begins again. Raises what opening raises and leaves the LoRAs of before,
        StateError while another thread runs the model or where LoRAs cannot be merged. With a
        `mesh` every rank calls it, with the same LoRAs: all have them then, or none.
        """
        wanted = as_loras(loras)
        ranks = self._ranks
        with together_or_alone(ranks, "change LoRAs"):
            self._refuse_no_change()
            if ranks is not None:
                refuse_other_loras(ranks, wanted)
            if self._loras is not None and self._loras.are(wanted):
                said = self._set_strengths(self._loras, [lora.strength for lora in wanted])
            else:
                said = self._set_files(wanted)
            self.tell(said)

    def _refuse_no_change(self) -> None:
        if self.closed or self._streamer.forked:
            raise StateError(
                f"set_loras was called, and this swap of {type(self.model).__name__} is "
                f"{'closed' if self.closed else 'of another process'}: open the model with loras="
            )
        self._streamer.refuse_running()

    def _set_strengths(self, loras: MergedLoras, strengths: Sequence[float]) -> str:
        """On all ranks or on none; where what stays is of neither, no forward goes on."""
        before, units = loras.strengths, self._streamer.units
        try:
            with together_or_alone(self._ranks, "merge LoRAs"):
                return loras.set(strengths, units)
        except BaseException:
            if not loras.torn:
                loras.set(before, units)  # another rank has failed
            raise
        finally:
            if loras.torn:
                self._streamer.spoil(
                    f"the LoRAs of {type(self.model).__name__} could neither be changed nor merged "
                    "as before: close the model and open it again"
                )

    def _set_files(self, wanted: tuple[Lora, ...]) -> str:
        if self._reopening is None:
            raise StateError(
                f"set_loras was called, and no LoRAs are merged into {type(self.model).__name__} "
                "here (a text encoder, a loaded model of several ranks or of an application around "
                "it): load them beside its weights (load_lora_adapter)"
            )
        with together_or_alone(self._ranks, "find other LoRAs"):
            again = self._reopening(wanted)
        self._open_anew(again)
        named = ", ".join(f"{Path(lora.path).name} at {lora.strength:g}" for lora in wanted)
        return f"LoRAs are others since: {named or 'none'}"

    def _open_anew(self, again: Callable[["Swap"], None]) -> None:
        """Closes what is open and opens it by `again`; a swap that could not be is closed."""
        final = self.measured()
        try:
            self._undo.close()
            again(self)
        except BaseException:
            if vars(self.model).get("blockswap") is not self:
                self.closed, self._final, self._told = True, final, ()
            raise

    def shares_slots_with(self, streamer: Streamer) -> bool:
        """Whether this model's blocks come through the slots of that engine."""
        return self._streamer.shares_pool_with(streamer)

    def led_by(self, other: "Swap") -> None:
        """That model was told that this one follows it."""
        self._leaders.add(other)

    def announce_follower(self) -> None:
        """Tells the pool which model follows this one, where somebody has said so."""
        other = self._follower and self._follower[0]()
        if self._follower and other and not (self.closed or other.closed):
            other.expect_after(self._streamer, self._follower[1])

    def expect_after(self, streamer: Streamer, forwards: int) -> None:
        """This model's turn comes after `forwards` forwards in a row of that engine's."""
        streamer.expect(forwards, self._streamer)

    @undisturbed()
    def forget_slots(self) -> None:
        """Host weights are about to be written: what slots hold of them is fetched anew after it.

        Waits for the device. Call it between forwards; raises StateError while another thread runs
        the model.
        """
        self._streamer.refuse_running()
        self._streamer.forget_slots()

    def status_line(self) -> str:
        """The report in a line, from what is measured by now: this waits for nothing."""
        measured = self._final or Measured(self._recorder.visits(), self._recorder.counters.copy())
        return summarise(self.plan, measured).status_line()

    def timeline(self, path: str | os.PathLike[str]) -> None:
        """Draws the last forwards as a PNG. Raises OutputError when it cannot be written."""
        draw_timeline(self.plan, self.measured(), path)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes a trace for Perfetto or chrome://tracing. Raises OutputError likewise."""
        write_trace(self.plan, self.measured(), path)

    def print_visits(self) -> None:
        """Prints a line per block from now on, with true times (`block_swap_debug`)."""
        self._recorder.on_visit = _print_line

    def flush_visits(self) -> None:
        """Waits for the device and prints what is not printed yet; ends each debugged forward."""
        self._device.synchronize()
        self._recorder.visits()


def _refuse_no_count(after: int) -> None:
    if isinstance(after, bool) or not isinstance(after, int) or after < 1:
        raise ArgsError(
            f"after={after!r} was asked, and a model's turn is a number of forwards: give how "
            "many it runs, 1 or more"
        )


def _print_line(visit: Visit) -> None:
    print(debug_line(visit), file=sys.stderr)

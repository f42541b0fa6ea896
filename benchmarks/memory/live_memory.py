"""Bytes of live tensors by kind, at every operation of a step, for real tensors and for fake ones alike.

A dispatch mode sees each operation's outputs and holds a weak reference to their storage, so that what is counted is
what an allocator hands out, and not the resident size of a process. torch's own `MemTracker` counts the same, but walks
all modules at each operation to keep a peak for each of them.

What is not seen: memory that a kernel takes and returns within one operation, and an allocator's rounding.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

KINDS = ("parameters", "auxiliary", "gradients", "optimizer", "activations", "temporary")


class LiveMemory(TorchDispatchMode):
    """Live bytes by kind, and a snapshot of them where their sum was largest in each phase.

    What is made in a phase counts as that phase's kind until it is named otherwise by `hold`; gradients of parameters
    are named as they appear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = dict.fromkeys(KINDS, 0)
        self.peaks: dict[str, dict[str, int]] = {}
        self._kinds = WeakIdKeyDictionary()  # storage -> the kind it counts as
        self._phase, self._kind = "", "activations"

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these tensors' storages as `kind` from now on."""
        for tensor in tensors:
            self._count(tensor, kind, rename=True)

    def watch_gradients(self, module: nn.Module) -> None:
        """Count the gradients of a module's parameters as such, those that exist and those to come."""
        for parameter in module.parameters():
            if parameter.grad is not None:
                self.hold([parameter.grad], "gradients")
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._hold_gradient)

    def _hold_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.hold([parameter.grad], "gradients")

    @contextmanager
    def phase(self, name: str, kind: str) -> Iterator[None]:
        """Inside, new storages count as `kind`, and the peak is kept under `name`."""
        before, self._phase, self._kind = (self._phase, self._kind), name, kind
        self._mark()
        yield
        self._phase, self._kind = before

    def peak(self) -> dict[str, int]:
        """Bytes by kind at the moment of the highest sum of all phases."""
        return max(self.peaks.values(), key=lambda snapshot: sum(snapshot.values()))

    def _count(self, tensor: Tensor, kind: str, rename: bool) -> None:
        storage = tensor.untyped_storage()
        known = self._kinds.get(storage)
        if known is None:
            known = [kind]
            self._kinds[storage] = known
            size = storage.nbytes()
            self.live[kind] += size
            weakref.finalize(storage, self._release, known, size)
        elif rename and known[0] != kind:
            size = storage.nbytes()
            self.live[known[0]] -= size
            self.live[kind] += size
            known[0] = kind

    def _release(self, kind: list[str], size: int) -> None:
        self.live[kind[0]] -= size

    def _mark(self) -> None:
        best = self.peaks.get(self._phase)
        if best is None or sum(self.live.values()) > sum(best.values()):
            self.peaks[self._phase] = dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._count(leaf, self._kind, rename=False)
        self._mark()
        return result


def allocator_peak(action: Callable[[], object], device: torch.device) -> int:
    """The most bytes that the allocator handed out while `action()` ran, above what it had handed out before.

    On a GPU `max_memory_allocated`; on a CPU the profiler's record of every allocation and release.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return max(accumulate((change for _, change in _cpu_events(action)), initial=0))


def allocator_change(action: Callable[[], object], device: torch.device) -> int:
    """The bytes that `action()` allocates and leaves allocated, whatever else is released meanwhile (on a CPU)."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device) - before
    live: dict[int, int] = {}
    for address, change in _cpu_events(action):
        if change > 0:
            live[address] = change
        else:
            live.pop(address, None)
    return sum(live.values())


def _cpu_events(action: Callable[[], object]) -> list[tuple[int, int]]:
    """(address, bytes) of what was allocated (above 0) and released (below) on the CPU during `action()`, in order."""
    with torch.autograd.profiler.profile(profile_memory=True) as profiled:
        action()
    assert profiled.kineto_results is not None
    events, waiting = [], list(profiled.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    return [(address, change) for _, address, change in sorted(events)]

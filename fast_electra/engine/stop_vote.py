"""A vote of all processes on stopping, which no step waits for."""

from datetime import timedelta

import torch
import torch.distributed as dist

_PROCESSES_A_STEP = 64


class StopVote:
    """Whether any process wants to stop: asked after one step and answered after the next, the same on all of them.

    Of many processes it is asked after every few steps: a vote passes from one to the next through all of them, twice.

    The flags meet on the CPU in a group of their own while the step computes, so that no step waits for the vote and
    the device is never asked. Its processes wait for each other for `patience_minutes` at most.
    """

    def __init__(self, patience_minutes: float = 30.0) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=patience_minutes))
        self._flag, self._steps = torch.zeros(1, dtype=torch.int32), 0
        self._every = max(1, dist.get_world_size() // _PROCESSES_A_STEP)
        self._pending: dist.Work | None = None

    def ask(self, wants_to_stop: bool) -> bool:
        """Give this process's vote; returns whether any voted to stop the last time. All processes take part."""
        self._steps += 1
        if self._steps % self._every:
            return False
        answer = self._answer()
        self._flag = torch.tensor([wants_to_stop], dtype=torch.int32)
        self._pending = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def close(self) -> bool:
        """The answer to the last vote; none is given after it."""
        answer = self._answer()
        dist.destroy_process_group(self._group)
        return answer

    def _answer(self) -> bool:
        if self._pending is not None:
            self._pending.wait()
        return bool(self._flag[0])

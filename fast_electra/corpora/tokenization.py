"""Documents to token ids, in worker processes that hold a tokenizer and nothing else.

A worker is this file run as a script: it imports numpy and `tokenizers`, not torch, so that it starts in a quarter of a
second and takes little memory; and unlike a forked or spawned process of `multiprocessing` it neither copies the
parent's threads nor runs its main module again. Batches go out and come back through pipes, in order: the result
does not depend on the number of workers. At most a few batches a worker are on their way, so memory does not grow with
the input.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer

_BATCH_CHARACTERS = 1 << 18  # a quarter of a second's work: long beside the pipe's 1 ms, and 30 MB while it lasts


class Tokenized(NamedTuple):
    """A batch of documents as token ids."""

    ids: NDArray[np.integer]  # the documents' tokens one after the other, each document's ended by the end token
    lengths: NDArray[np.int32]  # tokens of each document, the end token included
    text_bytes: int  # of the documents in UTF-8
    seconds: float  # that a worker spent on them


_Answer = queue.SimpleQueue[Tokenized | Exception]
_Tasks = queue.SimpleQueue[tuple[list[str], _Answer] | None]


def tokenize(
    documents: Iterable[str], tokenizer_file: Path, *, end_id: int, dtype: DTypeLike, workers: int
) -> Generator[Tokenized, None, None]:
    """Yield the documents in order, batch by batch, tokenised by `workers` processes; closing it ends these.

    `tokenizer_file` is the tokenizer.json of a fast tokenizer. No special token is added but `end_id` behind each
    document, none is read out of a text ("[MASK]" in a document is six characters), nothing is truncated.
    Raises ChildProcessError if a worker is killed, RuntimeError if it fails.
    """
    command = [sys.executable, "-P", __file__, str(tokenizer_file), str(end_id), np.dtype(dtype).name]
    tasks: _Tasks = queue.SimpleQueue()
    with ExitStack() as stack:
        for _ in range(workers):
            worker = stack.enter_context(_started(command))
            stack.callback(tasks.put, None)
            # A daemon, and queues that are one step each: Ctrl-C within Python's own locks, as a pool's threads and
            # futures share them with this one, would leave a thread waiting for ever, and the process for that.
            threading.Thread(target=_serve, args=(worker, tasks), daemon=True).start()
        pending: deque[_Answer] = deque()
        for batch in _batches(documents):
            pending.append(queue.SimpleQueue())
            tasks.put((batch, pending[-1]))
            if len(pending) > 2 * workers:
                yield _received(pending.popleft())
        while pending:
            yield _received(pending.popleft())


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
    # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends its workers.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # of what was on its way to it
                pipe.close()
        process.wait()


def _serve(worker: subprocess.Popen[bytes], tasks: _Tasks) -> None:
    """What a thread does: pass batches to its worker and answers back, until there is no task."""
    while (task := tasks.get()) is not None:
        batch, answer = task
        try:
            answer.put(_ask(worker, batch))
        except Exception as error:
            answer.put(error)


def _received(answer: _Answer) -> Tokenized:
    found = answer.get()
    if isinstance(found, Exception):
        raise found
    return found


def _ask(worker: subprocess.Popen[bytes], batch: list[str]) -> Tokenized:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        _send(batch, worker.stdin)
        reply = pickle.load(worker.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        status = worker.wait()
        reason = "killed, most likely for want of memory" if status == -signal.SIGKILL else "see its message above"
        message = f"a tokenising worker ended with status {status} ({reason}): try fewer workers"
        raise ChildProcessError(message) from error
    if isinstance(reply, str):
        raise RuntimeError(f"a tokenising worker failed:\n{reply}")
    return Tokenized(*reply)


def _send(message: object, pipe: IO[bytes]) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _work(tokenizer_file: str, end_id: int, dtype: str) -> None:
    """What a worker does: answer batches on standard input with tuples on standard output until the input ends."""
    replies, sys.stdout = sys.stdout.buffer, sys.stderr
    backend = None
    while True:
        try:
            documents = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        # Not before the first batch: of a parent told to stop while it starts its workers, no file may be left by now.
        backend = backend or _backend(tokenizer_file)
        try:
            _send(_encode(backend, documents, end_id, dtype), replies)
        except Exception:
            _send(traceback.format_exc(), replies)


def _backend(tokenizer_file: str) -> Tokenizer:
    backend = Tokenizer.from_file(tokenizer_file)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _encode(
    backend: Tokenizer, documents: list[str], end_id: int, dtype: str
) -> tuple[NDArray[np.integer], NDArray[np.int32], int, float]:
    start = time.perf_counter()
    rows = [[*encoding.ids, end_id] for encoding in backend.encode_batch_fast(documents, add_special_tokens=False)]
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    ids = np.fromiter(chain.from_iterable(rows), dtype=dtype, count=int(lengths.sum()))
    text_bytes = sum(len(document.encode()) for document in documents)
    return ids, lengths, text_bytes, time.perf_counter() - start


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), sys.argv[3])

"""Where runs take place: in this process, or in several others side by side."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..registry import ConfigError
from ..statistics_of_runs import FAILED
from .hardware import cores
from .single import Event, Executor

LOG = "worker-{number}.log"
PATIENCE = 60.0
"""Seconds a worker has to save its run after it was asked to stop."""

Order = dict[str, Any]


class Here:
    """Runs in this process, one after another.

    Args:
        on_event: Told how far each is.
    """

    def __init__(self, on_event: Event):
        self.executor = Executor(on_event)
        self.on_event = on_event

    def prepare(self, order: Order) -> dict[str, Any]:
        """See `Executor.prepare`."""
        return self.executor.prepare(order)

    def run(self, orders: Iterable[Order]) -> Iterator[dict[str, Any]]:
        """The lines of all runs, each as it is over."""
        for order in orders:
            self.on_event({"kind": "start", **_key(order)})
            line = self.executor.run(order)
            is_broken = line.pop("breaks_device", False)
            yield line
            if is_broken:
                raise RuntimeError(
                    f"the device cannot be used any more in this process ({line['error']}). Start the same command "
                    "again: what is finished is kept. With compare.jobs=2 runs have processes of their own, which "
                    "are replaced."
                )

    def close(self) -> None:
        """There is nothing to stop."""


class Worker:
    """One process that runs orders.

    Args:
        number: Of the worker, from 0.
        jobs: How many there are.
        folder: Of the comparison; what the process prints goes into a log there.
        inbox: Where its messages go, as `(worker, message)`; None for the end.
    """

    def __init__(self, number: int, jobs: int, folder: Path, inbox: SimpleQueue):
        self.number, self.inbox = number, inbox
        self.order: Order | None = None
        self.is_ready = False
        reading, writing = os.pipe()
        with (folder / LOG.format(number=number)).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hf_kd.compare.worker", str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env=_environment(number, jobs),
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        os.close(writing)
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8") as messages:
            for text in messages:
                with contextlib.suppress(ValueError):  # half a line of a process that was killed
                    self.inbox.put((self, json.loads(text)))
        self.inbox.put((self, None))

    def give(self, order: Order) -> None:
        """Let it do something."""
        self.order = order
        with contextlib.suppress(OSError):  # it is dead, which its end of messages says
            self.process.stdin.write((json.dumps(order) + "\n").encode())
            self.process.stdin.flush()

    def stop(self) -> None:
        """Let it save what it does, and end."""
        self.process.send_signal(signal.SIGTERM)
        self.hang_up()

    def hang_up(self) -> None:
        """There are no more orders."""
        with contextlib.suppress(OSError):  # it is dead
            self.process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Until it ended, or the time is over."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """Runs in several processes. They start when they are needed and keep data and teacher between their runs.

    Each sees one of the CUDA devices, if there are several, and has its share of the cores.

    Args:
        jobs: Processes.
        folder: Of the comparison.
        on_event: Told how far each run is.
    """

    def __init__(self, jobs: int, folder: Path, on_event: Event):
        self.jobs, self.folder, self.on_event = jobs, folder, on_event
        self.inbox: SimpleQueue[tuple[Worker, dict[str, Any] | None]] = SimpleQueue()
        self.workers: list[Worker] = []

    def prepare(self, order: Order) -> dict[str, Any]:
        """In one worker, while nothing else runs: times are measured.

        Raises:
            ConfigError: See `Executor.prepare`.
            RuntimeError: The worker died.
        """
        worker = self.workers[0] if self.workers else self._start(0)
        worker.give(order)
        while True:
            worker, message = self._next()
            if message is None:
                raise RuntimeError(f"{_death(worker)} while {order['pair']!r} was prepared. {self._see(worker)}")
            if "refused" in message:
                raise ConfigError(message["refused"])
            if "done" in message:
                worker.order = None
                return message["done"]

    def run(self, orders: Iterable[Order]) -> Iterator[dict[str, Any]]:
        """The lines of all runs, each as it is over."""
        waiting = deque(orders)
        for number in range(len(self.workers), min(self.jobs, len(waiting))):
            self._start(number)
        for worker in self.workers:
            self._give_next(worker, waiting)
        while any(worker.order is not None for worker in self.workers):
            worker, message = self._next()
            order, worker.order = worker.order, None
            if message is None:
                if worker not in self.workers:  # replaced already
                    continue
                self.workers.remove(worker)
                worker.hang_up()
                worker.process.wait()
                line = None if order is None else self._dead_line(worker, order)
                if waiting:
                    self._give_next(self._start(worker.number), waiting)
            else:
                line = message["done"]
                if not line.pop("breaks_device", False):
                    self._give_next(worker, waiting)
            if line is not None:
                yield line

    def close(self) -> None:
        """Stop all, each after it has saved its run."""
        for worker in self.workers:
            worker.stop()
        deadline = time.monotonic() + PATIENCE
        for worker in self.workers:
            worker.wait(deadline)
        self.workers.clear()

    def _start(self, number: int) -> Worker:
        worker = Worker(number, self.jobs, self.folder, self.inbox)
        self.workers.append(worker)
        return worker

    def _give_next(self, worker: Worker, waiting: deque[Order]) -> None:
        if waiting:
            order = waiting.popleft()
            self.on_event({"kind": "start", **_key(order)})
            worker.give(order)

    def _next(self) -> tuple[Worker, dict[str, Any] | None]:
        """The next message that is no mere event; None for a worker that ended."""
        while True:
            try:
                worker, message = self.inbox.get(timeout=1.0)  # so that signals are handled meanwhile
            except Empty:
                continue
            if message is None and not worker.is_ready:
                raise RuntimeError(f"{_death(worker)} before it could begin. {self._see(worker)}")
            if message is None or not {"event", "ready"} & message.keys():
                return worker, message
            worker.is_ready = True
            if "event" in message:
                self.on_event(message["event"])

    def _dead_line(self, worker: Worker, order: Order) -> dict[str, Any]:
        known = {key: order[key] for key in ("pair", "method", "seed", "folder", "fingerprint")}
        return {**known, "state": FAILED, "error": f"{_death(worker)}. {self._see(worker)}"}

    def _see(self, worker: Worker) -> str:
        return f"See {self.folder / LOG.format(number=worker.number)}."


def _key(order: Mapping[str, Any]) -> dict[str, Any]:
    return {name: order[name] for name in ("pair", "method", "seed")}


def _death(worker: Worker) -> str:
    """How a process ended, in words."""
    code = worker.process.wait()
    if code == -signal.SIGKILL:
        return "The process was killed, perhaps because memory ran out (signal 9)"
    return f"The process ended by signal {-code}" if code < 0 else f"The process ended with code {code}"


def _environment(number: int, jobs: int) -> dict[str, str]:
    """A device of its own where there are several, and a share of the cores."""
    import torch

    given = dict(os.environ)
    asked = int(given["OMP_NUM_THREADS"]) if given.get("OMP_NUM_THREADS", "").isdigit() else cores()
    given["OMP_NUM_THREADS"] = str(max(1, min(asked, cores() // jobs)))
    count = torch.cuda.device_count()
    if count > 1:
        visible = given.get("CUDA_VISIBLE_DEVICES", "")
        devices = [part.strip() for part in visible.split(",") if part.strip()] or [str(i) for i in range(count)]
        given["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return given


def number_of_jobs(jobs: int | str) -> int:
    """What "auto" stands for: one per CUDA device, else 1."""
    import torch

    return max(1, torch.cuda.device_count()) if jobs == "auto" else int(jobs)


def pool_of(jobs: int, folder: Path, on_event: Callable[[dict[str, Any]], None]) -> Here | Pool:
    """Where the runs take place."""
    return Here(on_event) if jobs == 1 else Pool(jobs, folder, on_event)

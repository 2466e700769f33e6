"""A process that runs what it is told: `python -m hf_kd.compare.worker FD`, started by `hf_kd.compare.pool`.

Orders come as JSON lines on standard input, answers go as JSON lines to the file descriptor FD. What libraries print
goes where the parent lets it. If the parent is gone, the run in progress is saved and the process ends.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from queue import SimpleQueue
from typing import Any

ENDED = 3
"""Exit code of a worker whose device is broken."""


def main(descriptor: int) -> None:
    """Take orders until there are none."""
    orders: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as out:

        def say(message: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):  # nobody listens any more, and the run is to be saved, not to fail
                out.write(json.dumps(message) + "\n")
                out.flush()

        from transformers.utils import logging

        from ..registry import ConfigError
        from .single import Executor

        logging.disable_progress_bar()
        executor = Executor(lambda event: say({"event": event}))
        say({"ready": os.getpid()})
        while (order := orders.get()) is not None:
            try:
                done = executor.prepare(order) if order["kind"] == "prepare" else executor.run(order)
            except ConfigError as error:  # of a preparation: the comparison cannot go on
                say({"refused": error.problems})
                continue
            say({"done": done})
            if done.get("breaks_device"):
                sys.exit(ENDED)


def _listen(orders: SimpleQueue) -> None:
    """Until the parent hangs up: at the end of its orders, or because it died."""
    for text in sys.stdin:
        orders.put(json.loads(text))
    orders.put(None)
    os.kill(os.getpid(), signal.SIGTERM)  # a run in progress saves itself; one that waits has nothing to lose


if __name__ == "__main__":
    main(int(sys.argv[1]))

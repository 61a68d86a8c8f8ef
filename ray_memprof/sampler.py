"""A look at the device every tenth of a second, on a thread of its own: what is in use, by whom, and how busy it is.

    with sampling(recorder.tick, meter, device, interval_s=0.1): ...

Samples show what happens between span boundaries and what other processes take; they are rows of the samples table.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_memprof.device import Device
from ray_memprof.meters import Meter, Reading
from ray_memprof.scribe import Sample


@contextmanager
def sampling(
    tick: Callable[[Sample], None], meter: Meter, device: Device | None, interval_s: float
) -> Iterator[None]:
    """Call `tick` with a sample every `interval_s` seconds while the block runs."""
    done, pid = threading.Event(), os.getpid()

    def work() -> None:
        last = meter.peek()
        while not done.wait(interval_s):
            # Where the allocator does not answer it holds what it held: the model waits for it, or for the device.
            last = meter.peek() if meter.answers() else last
            tick(sample(last, device))

    thread = threading.Thread(target=work, name="sampler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a forked child leaves this block too: the thread is not there
            done.set()
            thread.join()


def sample(reading: Reading, device: Device | None) -> Sample:
    """One row of now, with a reading just taken or the last there is; what the driver does not tell stays empty."""
    t_ns = time.time_ns()
    own = others = utilisation = None
    used = reading.device_used
    if device is not None:
        used, utilisation = device.used_bytes(), device.utilisation()
        own, others = split(device, os.getpid())
    return Sample(
        t_ns=t_ns,
        device_used_bytes=used,
        process_used_bytes=own,
        others_used_bytes=others,
        allocated_bytes=reading.allocated,
        reserved_bytes=reading.reserved,
        host_rss_bytes=reading.host_rss,
        utilisation_fraction=utilisation,
    )


def split(device: Device, pid: int) -> tuple[int | None, int | None]:
    """Bytes of this process and of all others; None where the driver does not tell.

    In a container the driver may name processes by the host's numbers: then this one is not among them, and neither
    number is known.
    """
    holders = {holder.pid: holder.used_bytes for holder in device.holders() or ()}
    own = holders.pop(pid, None)
    sizes = list(holders.values())
    if own is None or None in sizes:
        return own, None
    return own, sum(size for size in sizes if size is not None)

"""The recording of a process: a recorder with its meter, its sampler and its scribe, from the beginning to the end.

    with recording(RecordingOptions(run_dir=run_dir, rank=0, device="cuda:0")) as recorder:
        train()

Leaves tables/{spans,allocs,samples,collectives,communicators,ledger,stacks}/rank=N/ in the run folder. A full disk is
raised when the block ends; any other failure becomes a line of `problems`.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ray_memprof.recorder.clock import Clock
from ray_memprof.recorder.collectives import watching
from ray_memprof.recorder.device_samples import sampling
from ray_memprof.recorder.meters.choice import meter_of
from ray_memprof.recorder.meters.guarded import Guarded
from ray_memprof.recorder.meters.meter import Meter
from ray_memprof.recorder.meters.nvml import OwnShare, is_contained, open_device
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.problems import Problems
from ray_memprof.recorder.recorder import Recorder
from ray_memprof.recorder.scribe import scribe_of
from ray_memprof.recorder.spans import counting_steps, listening


@contextmanager
def recording(
    options: RecordingOptions, clock: Clock | None = None, *, predicted: Meter | None = None
) -> Iterator[Recorder]:
    """Record what runs inside the block on this thread.

    Args:
        options: what is recorded, and where to.
        clock: the clock that clock_offset_ns was measured for; None: a new one.
        predicted: the meter of a device that is not there: then nothing is asked of a driver, and nothing is sampled.

    Raises:
        DiskFull: what was measured could not all be written.
    """
    on_cuda = options.device != "cpu" and predicted is None
    with open_device(uuid=options.gpu_uuid, index=options.gpu_index) if on_cuda else nullcontext() as device:
        clock = (clock or Clock()).ahead(options.clock_offset_ns)
        problems = Problems()
        meter = Guarded(predicted or meter_of(options, device, clock, problems), problems, clock)
        share = None
        if device is not None:
            share = OwnShare(device, os.getpid(), is_contained=is_contained())
        scribe = scribe_of(options, meter, problems)
        recorder = Recorder(options.rank, meter, scribe, share=share, problems=problems)
        if on_cuda and device is None:
            recorder.problem(
                "the driver (NVML) does not report this rank's device: memory of other processes on it cannot be told "
                "apart from memory of this process"
            )
        recorder.start()
        samples: AbstractContextManager[object] = nullcontext()
        if predicted is None:
            samples = sampling(recorder, meter, device, options.sample_interval_s, clock=clock)
        try:
            with samples:
                with listening(recorder), watching(recorder), counting_steps():
                    yield recorder
        finally:
            recorder.close()

"""Imports what every prediction needs, and no GPU: where there is one, its memory is the run's.

Imported in processes that do nothing else (processes.py). What is imported stays until they end, so the collector of
garbage does not look through it again and again. Ctrl-C ends the process silently while it imports; later it is for the
process that started this one, which tells when to end.
"""

import gc
import os
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
gc.disable()
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch._dynamo  # noqa: E402

from ray_memprof.predictor import fake_cuda, fake_group, operations, repeats  # noqa: E402
from ray_memprof.workload import wan_rank  # noqa: E402
from wan import generate, pipeline  # noqa: E402

del torch, fake_cuda, fake_group, operations, repeats, wan_rank, generate, pipeline
gc.freeze()
gc.enable()
signal.signal(signal.SIGINT, signal.SIG_IGN)

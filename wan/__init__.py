"""Wan2.1 video generation on one or several GPUs, with as little GPU memory as possible.

    from wan.config import TASKS
    from wan.pipeline import Pipeline, Request

pipeline.py is the file to read first; `python -m wan.generate` is the command line. Importing this package imports
nothing: config, options, levers, spans and errors work without torch.
"""

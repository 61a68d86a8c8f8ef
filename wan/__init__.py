"""Wan2.1 video generation on one GPU, in as little memory as it takes.

    from wan.config import TASKS
    from wan.pipeline import Pipeline, Request

pipeline.py is the file to read first; `python -m wan.generate` is the command line. Importing this package imports
nothing: config, options, levers, spans and errors work without torch.
"""

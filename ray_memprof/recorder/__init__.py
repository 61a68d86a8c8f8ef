"""Records the memory of one process: spans and samples, and each event of the allocator, as rows on disk.

Read recorder.py first. Knows no Ray and no configuration: RecordingOptions in, tables out.
"""

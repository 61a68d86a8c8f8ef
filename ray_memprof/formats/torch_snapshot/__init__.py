"""Memory snapshots of torch's allocator: write.py exports a run as one, read.py makes a run of any program's."""

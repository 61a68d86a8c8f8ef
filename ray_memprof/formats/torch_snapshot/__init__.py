"""Memory snapshots of torch's allocator: write.py makes one of a run, read.py a run of those of any program."""

"""What a recorder reads: the caching allocator of CUDA, the host's memory, and the device by its driver (NVML).

Read meter.py first: the interface.
"""

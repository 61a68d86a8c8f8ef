"""What torch's caching allocator does with requests: sizes, splitting, and which block is where. Pure.

Read replay.py first, which follows events; caching.py makes them from requests.
"""

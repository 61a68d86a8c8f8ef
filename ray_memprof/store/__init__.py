"""The folder of a run and its rows, which stay whole whatever happens to their writer. Read rank_store.py first."""

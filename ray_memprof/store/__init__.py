"""The folder of a run and the rows in it, whole whatever happens to their writer. Read rank_store.py first."""

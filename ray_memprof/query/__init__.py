"""Questions to one run or to many, in SQL. Read database.py first: a run as tables and views of DuckDB.

Every number that a person sees comes from a file of sql/.
"""

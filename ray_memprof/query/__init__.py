"""Questions to one run or to several, in SQL. Read database.py first: it opens a run as tables and views of DuckDB.

Every number that a person sees comes from a file in sql/.
"""

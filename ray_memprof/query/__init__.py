"""Questions to one run or to several, in SQL. Read database.py first: it opens a run as tables and views of DuckDB.

Every number of a single run that a person sees comes from a question in sql/, or from SQL that reads these questions:
in analysis/ for findings and comparisons, in formats/ for the files of other tools. Only the mark of pytest_plugin/
takes its peaks from the tables spans and samples itself.
"""

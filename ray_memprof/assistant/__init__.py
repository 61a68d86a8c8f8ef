"""Answers about runs for an assistant, over the Model Context Protocol: the same text that the commands print.

Read tools.py first: what an assistant may call. Only server.py imports the protocol's SDK, the optional extra `mcp`.
"""

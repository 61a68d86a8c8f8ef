"""Reads and checks prompts, images and videos, turns them into inputs of the networks, and writes the result."""

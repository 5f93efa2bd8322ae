"""Benchmarks: each command prints one table and writes JSON. What is measured and how: README.md beside this file."""

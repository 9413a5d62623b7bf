"""Benchmarks: one question a file, each contender in a fresh process, goals beside the figures.

`python -m benchmarks` asks them all; `python benchmarks/round_trip.py`, say, asks one.
"""

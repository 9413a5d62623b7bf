"""Benchmarks: one question a file, each contender in a fresh process, figures as JSON on demand."""

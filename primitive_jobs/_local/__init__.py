"""The workers on this machine, for the engine: threads that start, end and measure them.

Each thread has a queue of its own, and reports to the fleet through the dispatcher's inbox.

============  =================================
fleet         the workers of one pool, for its engine
memory_watch  looks at jobs with a memory limit
reaper        kills and reaps workers
spawner       starts workers
============  =================================
"""

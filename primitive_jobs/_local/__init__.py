"""The workers on this machine, for the engine: threads that start, end and measure them.

Each thread owns its queue, and tells the fleet.

============  =================================
fleet         the workers of one pool, for its engine
memory_watch  looks at jobs with a memory limit
reaper        ends workers
spawner       starts workers
============  =================================
"""

"""The workers on this machine, for the engine: threads that start, end and measure them.

Each thread has a queue of its own, and reports to the fleet through the dispatcher's inbox.

============  =================================
ahead         sends jobs ahead to busy workers, and takes them back
fleet         the workers of one pool, for its engine
hidden        workers whose death no descriptor shows at once
lessons       tells workers that wait what others have imported
memory_watch  looks at jobs with a memory limit
pipes         reads what workers print
reaper        kills and reaps workers
spawner       starts workers
stacks        asks workers for the stack of a job that goes on
unclosed      workers that are gone, whose channels may be in use
============  =================================
"""

"""One worker process from outside: how it is started, watched over, killed and reaped.

It touches processes, signals and /proc, and knows neither jobs nor queues.

============  ===============================================
available     how much memory the machine, or the cgroup, has left
former        what the program was before an exec(3)
guard         the process that outlives the program, a script
guardian      this program's side of the guard
interpreter   which program workers are started with
killing       ends a worker with all that is below it
launch        starts a worker, by loky
learned       what the workers have imported, for those that have had no job
probe         what the system says of processes
process       one worker
start_lock    held while a process is started: no fork comes in between
surroundings  whether a pool can work in this process at all
tracker       a resource tracker of multiprocessing or loky, a script
trackers      this program's side of them
============  ===============================================
"""

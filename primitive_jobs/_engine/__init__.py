"""What a pool decides, and the thread that carries it out: jobs' records, scheduler, outcomes.

It holds no object of the user's. What users hold reaches it by the `PoolLink` of `record`.

==========  ===========================================================
callbacks   the thread on which users' code runs
circles     waiting for a job that is being submitted
code_watch  notices that code was imported anew
dispatcher  the thread that owns a pool's state
events      what is told to the scheduler, and what it wants done
fence       what an exception in an action costs: one worker
job_table   which job gets a worker next, and how each ends
lifetime    the end of the program, and its forks
pauses      when another worker is tried after a failure
poller      waits on descriptors; and the bell that wakes it
queue       the jobs that wait, in order
record      what a pool needs of a job
roster      which workers there are, and how many are missing
scheduler   the decisions, a pure state machine
slots       one worker's life, and the table of its legal moves
sources     what is sent to a worker ahead of the jobs that refer to it
tracker     one job's status and outcome
unseen      failures that nobody has looked at
verdicts    how a job has ended, in words
worker_log  what becomes of workers, on the logger
==========  ===========================================================
"""

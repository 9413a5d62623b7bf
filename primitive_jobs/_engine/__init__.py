"""What a pool decides, and the thread that carries it out: jobs' records, scheduler, outcomes.

It holds no object of the user's, and imports no workers. What users hold reaches it by the
`PoolLink` of `record`; the workers are a `Fleet`, which a pool hands over.

==========  ===========================================================
callbacks   the thread on which users' code runs
circles     waiting for a job that is being submitted
code_watch  notices that code was imported anew
dispatcher  the thread that owns a pool's state
engine      what callers hold of a pool, its threads and its end
events      what is told to the scheduler, and what it wants done
fence       what an exception in an action costs: one worker
fleet       where the workers are, as the engine sees it
hand_over   a job's caller gives it to an idle worker itself
inbox       what other threads have to say to the dispatcher
job_table   which job gets a worker next, and how each ends
lifetime    the end of the program, and its forks
look        what there is in a pool, at one moment
past_job    what of a job travels in a pickle
pauses      when another worker is tried after a failure
poller      waits on descriptors; and the bell that wakes it
queue       the jobs that wait, in order
record      what a pool needs of a job
registry    the jobs that are taken in, and what comes at their end
roster      which workers there are, and how many are missing
scheduler   the decisions, a pure state machine
serialize   makes of a call what a worker is sent
slots       one worker's life, and the table of its legal moves
sources     what is sent to a worker ahead of the jobs that refer to it
tracker     one job's status and outcome
unseen      failures that nobody has looked at
verdicts    how a job has ended, in words
worker_log  what becomes of workers, on the logger
==========  ===========================================================
"""

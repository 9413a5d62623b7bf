"""What a pool decides, and the thread that carries it out: jobs' records, scheduler, outcomes.

It holds no object of the user's, and imports no room of the workers. What users hold calls it by
the `PoolLink` of `record`; it reaches the workers by a `Fleet`, which a pool hands over.

=============  ===========================================================
admission      the jobs that need more than any worker, and one pass over all that wait
again          what goes ahead of a call that others have made before, in part
arguments      jobs among the arguments of a call, and what is put in their places
attempts       what workers did with jobs, the last 20,000 times
awaited        another job's result on its way to a job that waits for it
callbacks      the thread on which users' callbacks and logging handlers run
capacity       what the jobs of a pool can ever have, and what they lack now
circles        refuses to wait for a job that cannot be submitted before the wait ends
code_watch     notices that code was imported anew
delays         the jobs that wait until they may be tried again
dependencies   jobs that wait for others, until those have ended
dispatcher     the thread that owns a pool's state
engine         what callers hold of a pool, its threads and its end
events         the events that the scheduler takes in, and the actions that it returns
fence          an exception in an action costs one worker, not the pool
fleet          the interface to the worker processes, wherever they are
gate           how a job gets to a worker, as its tracker knows it
given          the tokens that a job has, which its worker is told
hand_over      a caller sends its job to an idle worker without the dispatcher
held           the jobs that wait for other jobs
inbox          the queue of commands to the dispatcher, from any thread
job_table      the unfinished jobs: whether the next may start, and how each ends
lifetime       pools at the end of the program, and in its forks
lines          the jobs that busy workers were sent ahead
look           a pool at one moment, for `snapshot`, and what its workers did, for `timeline`
past_job       the part of a job that is pickled
pauses         when another worker is tried after a failure
poller         waits on descriptors; and the bell that wakes it
printing       where a job's output goes
queue          the queued jobs, in the order in which they start
recall         sends jobs ahead, and takes them back before they could wait
record         what a pool needs to know of a job
registry       the unfinished jobs' records, and what is done at a job's end
repeated       large buffers that several calls of joblib's are given, sent to a worker once
reservations   what running jobs hold of memory and tokens, and what is left
resubmit       a new job of a call that another one has made
roster         which workers there are, and which are free
scheduler      the decisions, a pure state machine
serialize      turns a call into what a worker is sent
slots          one worker's life, and the table of its legal moves
sources        shared data and descriptors, sent to a worker before the jobs that use them
staffing       when another worker is started, and how many there should be
standing       a job in the pickle of a call, where it may stand for its result
stored         the door of a store: outcomes as they came, and such of earlier programs
tracker        one job's status and outcome
unmet          the outcome of a job that has waited in vain for another one
unseen         failures that nobody has looked at
verdicts       a job's outcome, with the text of its error
waiting_calls  what a call with jobs among its arguments waits for
wide           the idle workers that were started for jobs of several CPUs
window         what is seen of a pool, and done to its jobs, from outside of its program
worker_events  what became of a worker: its start, its readiness, its end
worker_log     logs what happens to workers
=============  ===========================================================
"""

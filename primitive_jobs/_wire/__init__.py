"""What a pool and its workers both need: what travels between them, and how it is packed.

It holds the descriptors and memory of what travels, and knows neither pools nor processes.

============  ================================================================
batches       the tasks of one of joblib's batches, packed
by_value      what of a script travels by value, beyond what cloudpickle knows
calls         a call as bytes, or why it cannot be pickled
channel       the link between a pool and one worker
chunk         many calls in one job
copies        buffers that come once for several calls, and are each call's own
culprit       by what an object cannot be pickled
evidence      what is told of a worker's end
fact          frozen records
facts         what is to be known of an attempt once it is over
failures      what a worker sends in the place of a result
forking       processes that a job starts by multiprocessing itself
functions     makes functions anew that have travelled by value
import_hook   something done to a module once it is imported
initializer   an initializer, pickled once
kept_globals  globals of a script that an initializer sets
layers        what many pickles have in common, pickled once
leftovers     what a job leaves in its process
libc          calls that Python has no names for
messages      what a worker and its pool say to each other
nesting       how deep this process is nested in workers
notes         the page of memory that both share
parcel        what a message carries, ready to be sent; files without a name
pickling      objects to bytes, and back
present       the job that a worker is at
redirect      has what a job prints go elsewhere
retrying      the classes of `retry_on`, and whether an exception counts
rng_states    where its random generators are
rows          the arguments of many calls, packed
seeding       the seeds of jobs
setting       the options of a job that its worker sees to
tensors       torch's tensors in a pickle
============  ================================================================
"""

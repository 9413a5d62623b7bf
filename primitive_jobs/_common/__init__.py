"""What all other rooms may use: words, hints, and how threads share state without a lock.

It imports the vocabulary (errors, logs, options, status) at most.

================  =====================================================================
advice            what to do instead, where what cannot travel was given to a job
clocks            how the clocks of one machine go together
forks             what is done in a fork of the process, and when
hints             what to say to those who look for what another library has
identity          what the ids of jobs are made of
imported          modules that others have imported already
lock_free         what each part without a lock relies on
markup            small tables and bars for notebooks
naming            what to call functions, types and errors in messages
signatures        keyword arguments that several signatures have in common
thread_variables  by which environment variables libraries take their number of threads
threads           threads of this library
twins             copies of exceptions that hold nothing else
unpatched         whether gevent or eventlet have patched what threads need
================  =====================================================================
"""

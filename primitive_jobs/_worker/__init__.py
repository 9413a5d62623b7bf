"""A worker process from inside. Nobody in the program imports it.

It uses `_wire` and `_common` alone: with each module that it imports, every worker starts later.

===========  ====================================
boot         the first lines of the process, a script
imports      which modules of libraries jobs have imported here
log_handler  makes a text of each log record, for the pool
log_socket   by which that goes there
loop         receive a call, make it, answer
meter        the time and memory that each job takes
orphans      reaps what jobs leave behind
stacks       writes the stack of a job that goes on, when asked
===========  ====================================
"""

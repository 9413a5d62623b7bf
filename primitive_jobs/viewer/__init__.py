"""Shows the pools of all programs of this user, from another terminal: `top`, `cancel`, `stack`.

It runs in a process of its own, knows pools by the sockets and the protocol of `monitor` alone, and
imports nothing that makes one.

==========  ===============================================================
commands    `cancel` and `stack`: one job, found by the beginning of its id
keys        the keyboard of a terminal, without echo and line by line
link        a connection to one pool, which asks and never blocks
live        the table drawn anew in a terminal, by rich
processes   what /proc tells of programs and workers
screen      what the live table shows, and what each key does
sockets     finds the pools that can be connected to
table       jobs as rows, and rows as columns of text
top         the command `top`
watch       the pools of all programs, and what they last said
==========  ===============================================================
"""

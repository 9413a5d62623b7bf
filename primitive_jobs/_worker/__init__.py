"""A worker process from inside. Nobody in the program imports it.

It uses `_wire` and `_common` alone: with each module that it imports, every worker starts later.

=======  ========================================
boot     the first lines of the process, a script
loop     receive a call, make it, answer
orphans  reaps what jobs leave behind
=======  ========================================
"""

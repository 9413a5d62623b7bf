"""The bars of `track`. They know jobs as their users do; only `progress` imports them.

======  ======================================================================
module  what it has
======  ======================================================================
state   how far several jobs are, how fast they end, and how long the rest takes
views   where that is shown
======  ======================================================================
"""

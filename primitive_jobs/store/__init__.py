"""Results that outlive the program: `SweepStore`.

What it may touch: names that users have, and of the engine `stored` alone, the door made for it.
Nothing else in the package knows this room.

==============  ====================================================================================
store           `SweepStore`, the file and what is asked of it
functions       `StoredFunction`: whose results they are, and whether its code has changed
sweep           `Sweep`: the points of one call, as their rows come
jobs            `StoredJob`, the job of a point, and `Pending`, until its row is written
writer          the thread that writes rows, and copies checkpoints
rows            `StoredRow`, what is known of a point
database        the SQLite file: format, errors, questions
contents        results as bytes, in the file or beside it; those that JSON can show
checkpoints     those of points that are not done, beside the file
lock            one program at a time
work            the points that are on their way, and the end
keys            what tells one point from another
canonical       a value as bytes, the same for equal ones
code            whether a function is still the same
syntax          the source of a function, as its parts
tables          rows as text, CSV, JSON, pandas
command         ``python -m primitive_jobs store``
==============  ====================================================================================
"""

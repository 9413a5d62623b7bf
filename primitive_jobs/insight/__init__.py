"""What a job's owner reads of it, while it runs and after its end; and of all jobs of a pool.

It imports `_wire`, `_common` and the vocabulary. The engine, of which it knows nothing, gives it
what workers have left, and plain data.

==============  ==================================================================================
ends            how attempts end: in words and in colours
lanes           which worker stands where in a picture, and what is merged there
logged          `Logged`: what brings a worker's log records here
memory          how much memory was held, as far as that is known
of_job          `Observed`: what a `PrimitiveJob` shows of itself
page            a timeline as a page that can be zoomed; `page.html` is its frame
pipe            `Pipe`: what brings a worker's output here
printed         `Printed`: what a job has printed, as far as it is kept
progress        `Progress`: what a job has reported
runs            what ran when, as plain data: what is drawn
salvage         `Checkpoint`: what a job wanted kept, and where it is held
svg             a timeline as a picture
tee             `Tee`: shows what a job prints while it runs
timeline        `Timeline`: what ran when
trace_events    a timeline for the viewers of Chrome and Perfetto
traces          `LocalTraces`: what a worker leaves of the attempts that it is at; `Seat`; `Kept`
usage           `Usage`: time and memory that a job took
waits           what a queued job waits for, in words
words           times, sizes and names as text
==============  ==================================================================================
"""

"""What a job calls. It imports `_wire` and `_common` alone: a worker loads what its jobs use.

==============  ===================================================================================
module          what it has
==============  ===================================================================================
checkpoints     `checkpoint`, `resume`: what a job wants kept, and what it goes on from
current         `current_job`: who the job is
reporting       `report`: how far it is
resources       `job_resources`: which of its pool's tokens it has
==============  ===================================================================================
"""

"""Shows a pool to other processes of the same user, which may also cancel its jobs.

It knows nothing but what it is handed: the poller of the pool's dispatcher, and the protocol
`requests.Pool`, by which it looks at jobs and has them cancelled. It has no thread, and all of it
runs on the dispatcher's. The viewers are in another room, and share `protocol` with it.

==========  =============================================================
protocol    names of the sockets, who is trusted, and datagrams of JSON
requests    what may be asked: one function a request
server      the listening socket of one pool
visitor     one viewer's connection
==========  =============================================================
"""

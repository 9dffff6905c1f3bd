"""Pellucid as a server: one durable queue of jobs, worker processes, and the HTTP interfaces.

`engine.py` is independent of HTTP: it accepts jobs, has them drawn and reports events. Each file in
`apis/` is one HTTP interface over it; `app.py` puts them together and `safety.py` guards them.
"""

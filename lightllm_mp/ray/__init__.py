"""A fleet on Ray Serve: each replica runs an engine, a front holds the requests, and a directory lists the replicas.

Needs the extra `lightllm-mp[ray]`; no other package of lightllm_mp imports ray.
"""

from lightllm_mp.ray.app import build_app

__all__ = ["build_app"]

"""Replicas on Ray: an engine in each replica, a front that holds the requests, and a directory where they meet.

Needs the extra `lightllm-mp[ray]`; nothing else of the package imports ray.
"""

from lightllm_mp.ray.app import build_app

__all__ = ["build_app"]

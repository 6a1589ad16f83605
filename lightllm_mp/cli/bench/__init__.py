"""`lightllm-mp bench`: a deterministic workload, a light client, a report. For any /generate_stream server."""

"""`lightllm-mp bench`: sends a deterministic workload to a /generate_stream server and reports what it measures."""

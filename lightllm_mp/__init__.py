"""lightllm_mp: an LLM serving engine made of actors over lock-free shared-memory queues."""

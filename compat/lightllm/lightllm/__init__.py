"""LightLLM's place, taken by lightllm_mp: see server/api_server.py."""

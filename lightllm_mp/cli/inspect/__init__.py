"""`lightllm-mp inspect`: what would be served, told without loading it. Imports no torch."""

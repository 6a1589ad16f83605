"""`lightllm-mp doctor`: checks whether this machine can serve, and names the remedy if it cannot. Imports no torch."""

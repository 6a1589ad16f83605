"""`lightllm-mp inspect`: describes a model without loading it. Imports no torch."""

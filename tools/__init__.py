"""Programs for developers of lightllm_mp; the wheel does not contain them. In a checkout: `python -m tools.bench.idle`.

bench measures speed, size and quality; faults kills, floods and soaks a server; fuzz feeds it bad bytes; demo_vlm
trains and evaluates the demo vision model; models_table writes a table of docs/models.md; the tools share harness.
Every tool has --help, and --smoke for a tiny run, which tests/tools/test_smoke.py does with each.
"""

"""`python -m lightllm_mp` is the command `lightllm-mp`."""

import sys

from lightllm_mp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

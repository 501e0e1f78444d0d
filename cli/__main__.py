# SPDX-License-Identifier: Apache-2.0
"""`python -m ditr_cache.cli`."""

from ditr_cache.cli.main import main

if __name__ == "__main__":
    main()

"""Scripts that turn text into token files; each is run as `python -m data_prep.<name>`."""

import nanogpt  # noqa: F401 - sets environment variables before torch is imported

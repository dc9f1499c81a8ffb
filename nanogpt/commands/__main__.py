"""`python -m nanogpt.commands`, for launchers that start modules."""

from nanogpt.commands import main

main()

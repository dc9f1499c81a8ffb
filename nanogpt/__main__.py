"""`python -m nanogpt`, for launchers that start modules."""

from nanogpt.cli import main

main()

"""Scripts that turn text into token files; each is run as `python -m data_prep.<name>`."""

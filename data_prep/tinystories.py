"""TinyStories, short stories in simple words, written by a language model (Eldan and Li 2023).

    python -m data_prep.tinystories                        # from the Hub into data/tinystories
    python -m data_prep.tinystories --source DIR           # from local copies of its files

About 470 million GPT-2 tokens in 2.1 million stories: 1 GB of disk. At 2.2 million tokens/s
(two cores, LOG.md) it takes four minutes, if the network keeps up (not run in full yet).
"""

from data_prep.text import prepare_known

if __name__ == "__main__":
    prepare_known(__doc__, "hf:roneneldan/TinyStories", "data/tinystories", val_fraction=0.01)
